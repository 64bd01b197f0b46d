"""Facts and the lines of children -> log lines or journal entries. The only file that knows how they look."""

import datetime as dt
import sys
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct

from service_manager import journal
from service_manager.entries import harmless, journal_entry
from service_manager.log_writer import LogWriter, to_stream
from supervisor import facts
from supervisor.errors import ConfigurationError
from supervisor.facts import Fact
from supervisor.output import Line

Format = Literal["console", "json", "journald"]
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
IDENTIFIER = "mobius-supervisor"
_JOB_FIELDS = ("job_id", "run_id", "action", "attempt")
"""What a child's line may say of itself in fields of the journal. All that it says is in the text."""

_MAX_STACKS = 8 * 1024
"""Characters of a line that are Python stacks; the exit record has all of them."""

# What a line is called and how loud it is. A fact without a row is not logged.
_LINES: dict[type[Fact], tuple[str, str]] = {
    facts.ChildSpawned: ("debug", "process started"),
    facts.ChildBooted: ("debug", "process booted"),
    facts.ChildRegistered: ("debug", "registered"),
    facts.ChildReady: ("info", "ready"),
    facts.ChildSilent: ("warning", "event loop is silent"),
    facts.ChildStalled: ("warning", "event loop runs and the session does not get on"),
    facts.ChildMovesAgain: ("warning", "the session gets on again"),
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
    facts.BuildSkew: ("warning", facts.REPLACED),
    facts.HandlerImportFailed: ("error", "handler modules cannot be imported"),
    facts.JobProcessStarted: ("debug", "process of a job started"),
    facts.JobProcessKilled: ("error", "killing the process of a job that does not stop"),
    facts.JobProcessEnded: ("warning", "process of a job ended"),
    facts.JobProcessRefused: ("warning", "no process for a job"),
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
    facts.Noted: ("warning", "note"),
    facts.IdentityDetected: ("info", "worker identity"),
    facts.Listening: ("info", "serving /metrics, /healthz, /readyz and /status"),
}


class Source(Struct, frozen=True, kw_only=True):
    """Whose lines they are. `pool` is empty for the control plane."""

    pool: str
    slot: str
    incarnation: int


class Log:
    """`publish` facts, `forward` children's lines."""

    def __init__(self, writer: LogWriter, *, level: str, log_format: Format, colors: bool) -> None:
        self._writer = writer
        self._threshold = _LEVELS[level]
        self._format = log_format
        self._console = structlog.dev.ConsoleRenderer(colors=colors)

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
        fields = {"event": type(fact).__name__, **entry}
        match fact:
            case facts.ChildDied():
                level = "info" if fact.asked else "warning"
                # Of a process that somebody else killed, the last lines explain nothing.
                entry["output"] = fact.output[-5:] if fact.self_made or fact.cause in ("hung", "boot_timeout") else []
                # What a beat says is in the exit record.
                entry.pop("beat")
            case facts.SuspectFact():
                evidence = msgspec.to_builtins(fact.evidence)
                evidence["stacks"] = fact.evidence.stacks[:_MAX_STACKS]
                entry["evidence"] = {key: value for key, value in evidence.items() if value}
                # The class says it better, and the line itself.
                del entry["loop_silent"], fields["loop_silent"]
                if isinstance(fact, facts.ChildHung):
                    del entry["ordered"], fields["ordered"]
                    level, event = ("warning", "killing a process as ordered") if fact.ordered else line
            case facts.JobProcessKilled():
                entry["evidence"] = {key: value for key, value in msgspec.to_builtins(fact.evidence).items() if value}
            case facts.JobProcessEnded() if fact.cause == "finished":
                level = "debug"
            case facts.DrainFinished() if fact.killed or fact.stuck or fact.cut_off:
                level = "warning"
            case facts.ChildBye() if fact.refused:
                level = "error"
            case facts.Noted():
                event = entry.pop("sentence")
        self._write(level, event, entry, fields)

    def write(self, level: str, event: str, entry: dict[str, Any]) -> None:
        """One line of the supervisor's own. Empty fields are left out."""
        self._write(level, event, entry, {})

    def forward(self, source: Source, lines: list[Line]) -> None:
        """A process's lines: a JSON object is an entry of its own log, anything else is what it printed."""
        of_source = msgspec.structs.asdict(source)
        shown = {"slot": source.slot} if self._format == "console" else of_source
        for line in lines:
            entry = _as_entry(line.text) if line.is_own else None
            if entry is None:
                text = line.text.decode("utf-8", "replace").rstrip("\r")
                entry = {"timestamp": _now(), "level": "info", "event": text, "stream": "output"}
                fields = {"stream": "output"}
            else:
                fields = {name: entry[name] for name in _JOB_FIELDS if name in entry}
                # A worker hands on what the process of a job printed.
                fields |= {"stream": "output"} if entry.get("stream") == "output" else {"event": entry["event"]}
            self._writer.write(self._render({**entry, **shown}, {**fields, **of_source}))

    def _write(self, level: str, event: str, entry: dict[str, Any], fields: Mapping[str, Any]) -> None:
        if _LEVELS[level] >= self._threshold:
            kept = {key: _short(value) for key, value in entry.items() if value not in ("", [], {}, None)}
            self._writer.write(self._render({"timestamp": _now(), "level": level, "event": event, **kept}, fields))

    def _render(self, entry: dict[str, Any], fields: Mapping[str, Any]) -> bytes:
        match self._format:
            case "console":
                return _console(entry, self._console)
            case "json":
                return msgspec.json.encode(entry)
            case "journald":
                return journal_entry(IDENTIFIER, entry, fields)


def resolve_format(wanted: str, *, is_terminal: bool, is_behind_journal: bool) -> Format:
    """`auto` is console for people, the journal's own protocol where the journal reads, and JSON for programs."""
    if wanted == "auto":
        return "console" if is_terminal else "journald" if is_behind_journal else "json"
    return wanted  # type: ignore[return-value]


def open_log(level: str, wanted_format: str, environ: Mapping[str, str]) -> tuple[Log, LogWriter]:
    """The log, on standard error or in the journal, and the writer to close after it. Raises ConfigurationError."""
    fd, is_terminal = sys.stderr.fileno(), sys.stderr.isatty()
    is_behind_journal = journal.is_behind(fd, environ)
    log_format = resolve_format(wanted_format, is_terminal=is_terminal, is_behind_journal=is_behind_journal)
    put = to_stream(fd)
    if log_format == "journald":
        try:
            put = journal.Journal().put
        except OSError as error:
            problem = f"expected a journal that listens at {journal.SOCKET}, but none does ({error.strerror})"
            raise ConfigurationError([f'supervisor.log_format: {problem}; write log_format = "json"']) from error
    writer = LogWriter(put)
    return Log(writer, level=level, log_format=log_format, colors=is_terminal), writer


def _as_entry(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        entry = msgspec.json.decode(line)
    except (ValueError, RecursionError):  # also text that is no UTF-8, which msgspec lets through as it is
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("event"), str) and entry.get("level") in _LEVELS
    return entry if known else None


def _console(entry: dict[str, Any], renderer: structlog.dev.ConsoleRenderer) -> bytes:
    shown = {key: harmless(value) if isinstance(value, str) else value for key, value in entry.items()}
    return str(renderer(None, entry["level"], shown)).encode("utf-8", "replace")


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
