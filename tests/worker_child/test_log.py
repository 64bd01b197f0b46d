import io
import json
import logging
from typing import Literal

import pytest
import structlog

from worker_child import log


def lines(level: str, do) -> list[dict]:  # type: ignore[no-untyped-def, type-arg]
    stream = io.StringIO()
    log.configure(level=level, log_format="json", stream=stream, pool="default")
    do()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_with_what_is_bound() -> None:
    (line,) = lines("info", lambda: structlog.get_logger().info("job.failed", job_id="j"))
    assert (line["event"], line["level"], line["pool"], line["job_id"]) == ("job.failed", "info", "default", "j")


def test_secrets_are_hidden_by_their_name() -> None:
    (line,) = lines("info", lambda: structlog.get_logger().info("x", lease_token="s3cret", api_key="s3cret"))
    assert "s3cret" not in json.dumps(line)


def test_lines_below_the_level_are_dropped() -> None:
    assert lines("warning", lambda: structlog.get_logger().info("x")) == []


def test_headers_that_websockets_would_print_never_appear() -> None:
    assert lines("debug", lambda: logging.getLogger("websockets.client").debug("> Authorization: Bearer key")) == []


def test_loggers_of_the_standard_library_are_heard() -> None:
    (line,) = lines("info", lambda: logging.getLogger("my.handlers").info("resized %s", "it"))
    assert (line["event"], line["logger"], line["level"]) == ("resized it", "my.handlers", "info")
    assert lines("info", lambda: logging.getLogger("my.handlers").debug("x")) == []


def test_our_own_libraries_are_heard_from_warning_up() -> None:
    (line,) = lines("debug", lambda: logging.getLogger("asyncio").warning("slow %s", "callback"))
    assert (line["event"], line["logger"], line["level"]) == ("slow callback", "asyncio", "warning")
    assert lines("debug", lambda: logging.getLogger("httpx").info("GET /")) == []


def test_a_traceback_is_cut() -> None:
    def fail() -> None:
        try:
            {}["x" * 1_000_000]
        except KeyError:
            structlog.get_logger().exception("failed")

    (line,) = lines("info", fail)
    assert len(line["exception"]) < log.MAX_EXCEPTION + 100


def test_a_reader_that_is_gone_fails_nobody() -> None:
    stream = io.StringIO()
    log.configure(level="info", log_format="json", stream=stream)
    stream.close()
    structlog.get_logger().info("nobody hears it")


def test_a_line_of_the_log_ends_with_its_mark() -> None:
    stream = io.StringIO()
    log.configure(level="info", log_format="json", mark="\x1fmark", stream=stream)
    structlog.get_logger().info("one\ntwo")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line.removesuffix("\x1fmark"))["event"] == "one\ntwo"


class Unshowable:
    def __repr__(self) -> str:
        raise SystemExit("there are no words for it")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_value_that_cannot_be_shown_fails_nobody(log_format: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    log.configure(level="info", log_format=log_format, stream=stream)
    itself: dict[str, object] = {}
    itself["itself"] = itself
    structlog.get_logger().info("one", value=Unshowable(), round=itself, number=5)
    (line,) = stream.getvalue().splitlines()
    assert "one" in line
    assert "(Unshowable that cannot be shown)" in line
    assert "5" in line


@pytest.mark.parametrize(("number", "level"), [(25, "info"), (35, "warning"), (60, "critical")])
def test_levels_of_a_library_of_its_own_are_the_standard_ones_below(number: int, level: str) -> None:
    (line,) = lines("info", lambda: logging.getLogger("my.library").log(number, "done"))
    assert (line["event"], line["level"]) == ("done", level)


def test_a_wrong_call_of_a_logger_fails_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines("info", lambda: logging.getLogger("my.library").info("%d apples", "many")) == []
    assert "many" in capsys.readouterr().err
