"""Where log lines go and how they look: console on a terminal, JSON lines otherwise, always on standard error."""

import logging
import sys
from typing import Any, TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str) -> None:
    """Set up structlog, and send the standard library's loggers (uvicorn, websockets) through it."""
    threshold = getattr(logging, level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    finish: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if sys.stderr.isatty():
        finish += [_harmless, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        finish.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineWriter(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # A library's own "info" (every connection, every reload) is noise to whoever runs us.
    root.setLevel(max(threshold, logging.WARNING))
    # What strangers send is no news: uvicorn warns of every request that is no HTTP.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.access").disabled = True


def _harmless(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What could steer a terminal is shown, not obeyed: a worker's name for itself may be anything."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


class _LineWriter:
    """Writes whole lines. A reader that is gone, a dead supervisor above all, must not fail what is being logged."""

    __slots__ = ("_stream",)

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = warn = error = critical = exception = fatal = log = msg
