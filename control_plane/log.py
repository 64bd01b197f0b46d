"""Where log lines go and how they look: entries in the journal where systemd reads standard error, else lines on
standard error, for people on a terminal and as JSON otherwise."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import structlog

from service_manager import journal
from service_manager.entries import harmless, journal_entry
from service_manager.log_writer import LogWriter

LEVELS = ("debug", "info", "warning", "error")
IDENTIFIER = "mobius-control-plane"


def configure(level: str) -> None:
    """Set up structlog, and send the standard library's loggers (uvicorn, websockets) through it."""
    threshold = getattr(logging, level.upper())
    finish, logger = _destination()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_StandardLibrary()]
    # A library's own "info" (every connection, every reload) is noise to whoever runs us.
    root.setLevel(max(threshold, logging.WARNING))
    # What strangers send is no news: uvicorn warns of every request that is no HTTP.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.access").disabled = True


def _destination() -> tuple[list[structlog.typing.Processor], "_Output"]:
    if sys.stderr.isatty():
        console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [_harmless, console], _Output(_write_line)
    if journal.is_behind(sys.stderr.fileno(), os.environ):
        # Without a journal that takes entries, it takes lines.
        with contextlib.suppress(OSError):
            writer = LogWriter(journal.Journal().put)
            atexit.register(writer.close)
            return [_to_journal], _Output(writer.write)
    return [structlog.processors.JSONRenderer()], _Output(_write_line)


def _to_journal(_logger: Any, _method: str, event: structlog.typing.EventDict) -> bytes:
    fields = {key: value for key, value in event.items() if key not in ("timestamp", "level", "exception")}
    return journal_entry(IDENTIFIER, event, fields)


def _harmless(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: harmless(value) if isinstance(value, str) else value for key, value in event.items()}


def _write_line(line: str) -> None:
    """A reader that is gone, a dead supervisor above all, must not fail what is being logged."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class _Output:
    """A structlog logger that hands on what was rendered."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write

    def msg(self, rendered: Any) -> None:
        self._write(rendered)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _StandardLibrary(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
