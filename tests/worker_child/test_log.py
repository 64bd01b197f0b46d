import io
import json
import logging

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
