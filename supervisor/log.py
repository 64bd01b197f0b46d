"""Facts and the lines of children -> log lines. The only file that knows how a line looks.

Lines are written by a thread of their own from a bounded queue: whoever reads the log may be slow or gone, and the
supervisor's loop must not wait for it.
"""

import datetime as dt
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog

from supervisor import facts
from supervisor.facts import Fact

Format = Literal["console", "json", "journald"]
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_SYSLOG = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_MAX_WAITING = 8 * 1024 * 1024
"""Bytes that wait for the log's reader."""

_CLOSE_PATIENCE = 2.0
_MAX_STACKS = 8 * 1024
"""Characters of a line that are Python stacks; the exit record has all of them."""

# What a line is called and how loud it is. A fact without a row is not logged.
_LINES: dict[type[Fact], tuple[str, str]] = {
    facts.ChildSpawned: ("debug", "process started"),
    facts.ChildBooted: ("debug", "process booted"),
    facts.ChildRegistered: ("debug", "registered"),
    facts.ChildReady: ("info", "ready"),
    facts.ChildSilent: ("warning", "event loop is silent"),
    facts.ChildHeardAgain: ("warning", "event loop is heard again"),
    facts.ChildHung: ("error", "killing a process that hangs"),
    facts.ChildBye: ("debug", "last words"),
    facts.ChildDied: ("warning", "process ended"),
    facts.CrashLoop: ("error", "crash loop: the same fault again and again"),
    facts.CrashLoopOver: ("info", "crash loop is over"),
    facts.RestartScheduled: ("info", "restart scheduled"),
    facts.ChildRecycled: ("info", "recycling a worker"),
    facts.ChildStuck: ("error", "process does not die of SIGKILL"),
    facts.EventRefused: ("debug", "event refused"),
    facts.MessageRefused: ("warning", "pipe message refused"),
    facts.BuildSkew: ("warning", "the package was replaced under a running supervisor: restart the service"),
    facts.HandlerImportFailed: ("error", "handler modules cannot be imported"),
    facts.OrphanEnded: ("warning", "ended a process that nobody ordered"),
    facts.DrainStarted: ("info", "stopping"),
    facts.DrainFinished: ("info", "stopped"),
    facts.ChangeBegan: ("info", "reload: trying the new settings"),
    facts.ChangeRefused: ("error", "reload refused: nothing changed"),
    facts.ChangeAborted: ("error", "reload aborted: the settings and children from before stay"),
    facts.ChangeAdopted: ("info", "reload adopted"),
    facts.ControlListening: ("info", "taking commands"),
    facts.JournalAdopted: ("info", "a journal was left: its reports are sent from here"),
    facts.Commanded: ("info", "command"),
    facts.Overslept: ("warning", "the supervisor itself was held up"),
    facts.OutputDropped: ("warning", "log lines were dropped: their reader is too slow"),
    facts.ActionFailed: ("error", "action failed"),
    facts.Noted: ("info", "note"),
    facts.IdentityDetected: ("info", "worker identity"),
    facts.Listening: ("info", "serving /metrics, /healthz, /readyz and /status"),
}


class LineWriter:
    """Writes lines to a file descriptor from a thread. What would wait beyond a limit is dropped and counted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: list[bytes] = []
        self._waiting = 0
        self._changed = threading.Condition()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Never blocks on the reader of the log."""
        with self._changed:
            if self._waiting + len(line) >= _MAX_WAITING:
                self.dropped += 1
                return
            self._waiting += len(line) + 1
            self._queue.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Write what is queued, for two seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_PATIENCE)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                data = memoryview(b"\n".join(self._queue) + b"\n")
                self._queue.clear()
            size = len(data)
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                pass  # nobody reads the log any more, and there is nowhere left to say so
            with self._changed:
                self._waiting -= size


class Log:
    """`publish` facts, `forward` children's lines."""

    def __init__(self, writer: LineWriter, *, level: str, log_format: Format, colors: bool) -> None:
        self._writer = writer
        self._threshold = _LEVELS[level]
        console = structlog.dev.ConsoleRenderer(colors=colors)
        renderers: dict[str, Callable[[dict[str, Any]], bytes]] = {
            "console": lambda entry: _console(entry, console),
            "json": msgspec.json.encode,
            "journald": _journald,
        }
        self._render = renderers[log_format]

    def set_level(self, level: str) -> None:
        """Which lines are wanted from now on."""
        self._threshold = _LEVELS[level]

    def publish(self, fact: Fact) -> None:
        """One line, if the fact has one and its level is wanted."""
        line = _LINES.get(type(fact))
        if line is None:
            return
        level, event = line
        entry = msgspec.structs.asdict(fact)
        match fact:
            case facts.ChildDied():
                level = "info" if fact.asked else "warning"
                # Of a process that somebody else killed, the last lines explain nothing.
                entry["output"] = fact.output[-5:] if fact.self_made or fact.cause in ("hung", "boot_timeout") else []
                # What a beat says is in the exit record.
                entry.pop("beat")
            case facts.ChildHung():
                evidence = msgspec.to_builtins(fact.evidence)
                evidence["stacks"] = fact.evidence.stacks[:_MAX_STACKS]
                entry["evidence"] = {key: value for key, value in evidence.items() if value}
            case facts.DrainFinished() if fact.killed or fact.stuck or fact.cut_off:
                level = "warning"
            case facts.ChildBye() if fact.refused:
                level = "error"
            case facts.Noted():
                event = entry.pop("sentence")
        self.write(level, event, entry)

    def write(self, level: str, event: str, entry: dict[str, Any]) -> None:
        """One line of the supervisor's own. Empty fields are left out."""
        if _LEVELS[level] >= self._threshold:
            kept = {key: _short(value) for key, value in entry.items() if value not in ("", [], None)}
            self._writer.write(self._render({"timestamp": _now(), "level": level, "event": event, **kept}))

    def forward(self, slot: str, lines: list[bytes]) -> None:
        """A child's lines: a JSON object is an entry of its own log, anything else is what it printed."""
        for line in lines:
            entry = _as_entry(line)
            if entry is None:
                text = line.decode("utf-8", "replace").rstrip("\r")
                entry = {"timestamp": _now(), "level": "info", "event": text, "stream": "output"}
            self._writer.write(self._render({**entry, "slot": slot}))


def resolve_format(wanted: str, *, is_terminal: bool) -> Format:
    """`auto` is console for people and JSON for programs."""
    if wanted == "auto":
        return "console" if is_terminal else "json"
    return wanted  # type: ignore[return-value]


def open_log(level: str, wanted_format: str) -> tuple[Log, LineWriter]:
    """The log on standard error, and the writer to close after it."""
    is_terminal = sys.stderr.isatty()
    writer = LineWriter(sys.stderr.fileno())
    log_format = resolve_format(wanted_format, is_terminal=is_terminal)
    return Log(writer, level=level, log_format=log_format, colors=is_terminal), writer


def _as_entry(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("event"), str) and entry.get("level") in _LEVELS
    return entry if known else None


def _console(entry: dict[str, Any], renderer: structlog.dev.ConsoleRenderer) -> bytes:
    shown = {key: _harmless(value) if isinstance(value, str) else value for key, value in entry.items()}
    return str(renderer(None, entry["level"], shown)).encode("utf-8", "replace")


def _harmless(text: str) -> str:
    """What could steer a terminal is shown, not obeyed: a job's parameters and a server's words come from anywhere."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


def _journald(entry: dict[str, Any]) -> bytes:
    """The level as sd-daemon(3) has it, in front of the line; the journal has the time itself."""
    fields = {key: value for key, value in entry.items() if key not in ("timestamp", "level", "event")}
    text = " ".join([str(entry["event"]), *(f"{key}={_word(value)}" for key, value in fields.items())])
    return f"<{_SYSLOG[entry['level']]}>{text}".replace("\n", "\\n").encode("utf-8", "replace")


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return msgspec.json.encode(text).decode() if " " in text or "\n" in text else text


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
