"""structlog set-up of a worker process: one line an event on standard output, which the supervisor reads."""

import contextlib
import datetime as dt
import logging
import sys
from typing import Any, ClassVar, Literal, TextIO

import msgspec
import structlog

from worker_child.actions import current

MAX_EXCEPTION = 16 * 1024
"""Characters of a traceback in one line of the log."""

_OUR_LIBRARIES = ("asyncio", "httpcore", "httpx", "websockets")
_SECRET_KEYS = frozenset({"api_key", "authorization", "lease_token", "session_token", "worker_session_token"})


def configure(
    *, level: str, log_format: Literal["console", "json"], mark: str = "", stream: TextIO | None = None, **bound: Any
) -> None:
    """Sends every line of this process to `stream` (standard output when None), with `bound` on each of them, the job
    that logs, and `mark` at its end.

    The standard library's loggers are sent the same way. Those of our own libraries are heard from WARNING up: they
    are talkative, and `websockets` would print request headers, which carry the API key.
    """
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=False)
    threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_job,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _hide_secrets,
            _cut_exception,
            _Renderer(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineWriter(stream or sys.stdout),
        cache_logger_on_first_use=True,
    )
    mark_lines(mark)
    structlog.contextvars.bind_contextvars(**bound)
    root = logging.getLogger()
    root.handlers[:] = [_StandardLibrary()]
    root.setLevel(threshold)
    for name in _OUR_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def mark_lines(mark: str) -> None:
    """From now on each line of this process ends with `mark`, and nothing of what was bound is on it.

    Of loggers too that were made before, in the mold.
    """
    structlog.contextvars.clear_contextvars()
    _LineWriter.end = f"{mark}\n"


def forward(lines: list[bytes], mark: str, fields: dict[str, Any]) -> None:
    """Lines of another process: those that end with `mark` are of its log, the others were printed and get `fields`.

    What is printed has no level, so none is too low for it.
    """
    now = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            text = line.decode("utf-8", "replace")
            if text.endswith(mark):
                sys.stdout.write(text.removesuffix(mark) + _LineWriter.end)
            elif text:
                entry = {"timestamp": now, "level": "info", "event": text.rstrip("\r"), "stream": "output", **fields}
                sys.stdout.write(msgspec.json.encode(entry).decode() + _LineWriter.end)
        sys.stdout.flush()


def _add_job(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Also on the lines of a library that knows nothing of jobs."""
    context = current.get(None)
    return event if context is None else {**context.log_fields(), **event}


def _hide_secrets(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key in _SECRET_KEYS & event.keys():
        event[key] = "(hidden)"
    return event


def _cut_exception(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """An exception may carry megabytes in its text: the end, which says what was raised, is kept."""
    exception = event.get("exception")
    if isinstance(exception, str) and len(exception) > MAX_EXCEPTION:
        event["exception"] = exception[: MAX_EXCEPTION // 2] + "\n...\n" + exception[-MAX_EXCEPTION // 2 :]
    return event


class _Renderer:
    """Makes an event a line, also one with a value that cannot be shown: whoever logs must not fail of it, least of all
    the worker when it says how a job ended, with what the job's handler has bound."""

    __slots__ = ("_render",)

    def __init__(self, render: Any) -> None:
        self._render = render

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
        try:
            return self._render(logger, method, dict(event))
        except BaseException:  # noqa: BLE001 - a `__repr__` may raise whatever it likes
            return self._render(logger, method, {_shown(key): _shown(value) for key, value in event.items()})


def _shown(value: Any) -> Any:
    if type(value) in (str, int, float, bool, type(None)):
        return value
    try:
        return str(repr(value))
    except BaseException:  # noqa: BLE001 - as above
        return f"({type(value).__name__} that cannot be shown)"


class _LineWriter:
    """Writes whole lines. A reader that is gone must not fail the job that logs."""

    __slots__ = ("_stream",)

    end: ClassVar[str] = "\n"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + self.end)
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _StandardLibrary(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        # A library may have levels of its own; structlog knows the standard ones alone.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - as everywhere in `logging`: a wrong call of a logger fails nobody
            self.handleError(record)
            return
        structlog.get_logger().log(level, message, logger=record.name, exc_info=record.exc_info)
