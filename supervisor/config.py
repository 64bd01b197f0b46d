"""The pool file: TOML -> frozen Structs, once. What does not fit is refused with a sentence that names the key."""

import contextlib
import difflib
import errno
import os
import re
import stat
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import tomli
from msgspec import Meta, Struct

from service_manager.credentials import others_can_read
from supervisor.errors import ConfigurationError
from wire.address import is_loopback
from wire.frames import MOST_CONCURRENT
from wire.tls import TlsFiles, TlsFilesError, client_context

CREDENTIAL_NAME = "api-key"
"""Name of the systemd credential that holds the API key."""

ENVIRONMENT = ("MOBIUS_API_URL", "MOBIUS_PROJECT", "MOBIUS_API_KEY", "MOBIUS_LOG_LEVEL")
"""Environment variables that override the pool file."""

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNIT_BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h)")
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB|)")
_PERCENT = re.compile(r"(\d{1,3})%")
_API_KEY = re.compile(r"mb[xc]_[^\s.]+(?:\.(?P<project>[^\s/]+))?")
_OLLAMA = "ollama"
_MODEL_SERVERS = {
    _OLLAMA: "http://127.0.0.1:11434",
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}
"""The APIs that model servers speak, and where each is found if nothing else is said."""

_SYNONYMS = {
    "count": "workers",
    "processes": "workers",
    "children": "workers",
    "threads": "concurrency",
    "url": "base_url",
}


class Duration(float):
    """Seconds, written `"500ms"`, `"30s"`, `"5m"` or `"2h"`. Zero is allowed."""

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Raises ValueError on anything else."""
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(text)
        return cls(float(match[1]) * _UNIT_SECONDS[match[2]])


class PositiveDuration(Duration):
    """A Duration above zero."""

    @classmethod
    def parse(cls, text: str) -> "PositiveDuration":
        """Raises ValueError on anything else."""
        seconds = Duration.parse(text)
        if seconds <= 0:
            raise ValueError(text)
        return cls(seconds)


class WholeSeconds(PositiveDuration):
    """A Duration of whole seconds, at least one: it is sent as an integer."""

    @classmethod
    def parse(cls, text: str) -> "WholeSeconds":
        """Raises ValueError on anything else."""
        seconds = Duration.parse(text)
        if seconds < 1 or not seconds.is_integer():
            raise ValueError(text)
        return cls(seconds)


class Size(int):
    """Bytes, written `"512MiB"`; `"0"` is zero."""

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Raises ValueError on anything else."""
        match = _SIZE.fullmatch(text)
        if match is None or (match[2] == "" and int(match[1]) != 0):
            raise ValueError(text)
        return cls(int(match[1]) * _UNIT_BYTES[match[2]])


class Percent(int):
    """A share in percent, written `"25%"`, from 1 to 100."""

    @classmethod
    def parse(cls, text: str) -> "Percent":
        """Raises ValueError on anything else."""
        match = _PERCENT.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= 100:
            raise ValueError(text)
        return cls(int(match[1]))


class Secret:
    """A text that no log, error or repr shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"


class Credential(Struct, frozen=True, kw_only=True):
    """Where the API key comes from: exactly one of `key_file` (a path, read by the children) and `key`."""

    source: str
    key_file: str | None = None
    key: Secret | None = None


_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_MODULE = r"^([^\W\d]\w*(\.[^\W\d]\w*)*|[^\x00]{1,4096}\.py)$"
_WORD = r"^[^\s\x00-\x1f]{1,256}$"

Time = Annotated[Duration, Meta(description="a duration in quotes", examples=["30s"])]
PositiveTime = Annotated[PositiveDuration, Meta(description="a duration above zero in quotes", examples=["30s"])]
WholeTime = Annotated[WholeSeconds, Meta(description="a duration of whole seconds in quotes", examples=["60s"])]
Bytes = Annotated[Size, Meta(description="a size in quotes", examples=["512MiB"])]
Share = Annotated[Percent, Meta(description="a percentage from 1 to 100 in quotes", examples=["25%"])]
Count = Annotated[int, Meta(ge=0, le=10**9, description="a whole number of 0 or more", examples=[0])]
Workers = Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000", examples=[2])]
Concurrency = Annotated[
    int,
    Meta(ge=1, le=MOST_CONCURRENT, description=f"a whole number from 1 to {MOST_CONCURRENT}", examples=[1]),
]
PoolName = Annotated[
    str,
    Meta(
        pattern=_NAME,
        description="at most 64 letters, digits, `-`, `_` or `.`, the first a letter or digit",
        examples=["default"],
    ),
]
InstanceId = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:-]{0,199})?$",
        description="at most 200 letters, digits, `-`, `_`, `.` or `:`",
        examples=["box-7"],
    ),
]
Project = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{0,128}$",
        description="a project handle (letters, digits, `-`, `_`), or an empty string",
        examples=["default"],
    ),
]
Words = Annotated[
    list[Annotated[str, Meta(pattern=_WORD)]],
    Meta(description="a list of names without spaces", examples=[["default"]]),
]
Queues = Annotated[
    list[Annotated[str, Meta(pattern=_WORD)]],
    Meta(min_length=1, description="a list of one or more queue names", examples=[["default"]]),
]
Models = Annotated[
    list[Annotated[str, Meta(pattern=r"^[^\s/]+/\S+$")]],
    Meta(description="a list of `provider/model` names", examples=[["ollama/llama3"]]),
]
ModelApi = Annotated[
    Literal["ollama", "openai", "anthropic"] | None,
    Meta(description='one of "ollama", "openai", "anthropic"', examples=["openai"]),
]
Modules = Annotated[
    list[Annotated[str, Meta(pattern=_MODULE)]],
    Meta(description="a list of Python modules, or of files that end in .py", examples=[["my_handlers"]]),
]
PathText = Annotated[
    str, Meta(pattern=r"^[^\x00]{1,4096}$", description="a path in quotes", examples=["/path/to/file"])
]
Workspace = Annotated[
    str, Meta(pattern=r"^[^\x00]{0,4096}$", description="a path in quotes", examples=["/path/to/directory"])
]
PathList = Annotated[
    list[Annotated[str, Meta(pattern=r"^[^\x00]{1,4096}$")]],
    Meta(description="a list of directories", examples=[["."]]),
]
Keep = Annotated[
    str,
    Meta(
        pattern=r"^(off|(?=.*[1-9])[0-9]+(\.[0-9]+)?(ms|s|m|h|d))$",
        description='a duration above zero in quotes, or "off"',
        examples=["30d"],
    ),
]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json", "journald"]
Journal = Literal["fsync", "write", "off"]


class ControlPlane(Struct, frozen=True, kw_only=True):
    """`[control_plane]`: the control plane that the children talk to. Paths are absolute after loading."""

    embedded: bool = False
    api_url: str = "https://api.mobiusops.ai"
    project: Project = "default"
    api_key_file: PathText = CREDENTIAL_NAME
    ca_file: PathText = ""
    client_certificate_file: PathText = ""
    client_key_file: PathText = ""
    listen: str = "127.0.0.1:8780"
    store: str = "sqlite:control-plane.db"
    store_password_file: PathText = ""
    lease_duration: WholeTime = WholeSeconds(60)
    heartbeat_cadence: WholeTime = WholeSeconds(20)
    keep_finished: Keep = "30d"
    metrics_listen: str = ""


class Supervisor(Struct, frozen=True, kw_only=True):
    """`[supervisor]`: the parent itself."""

    listen: str = "127.0.0.1:9464"
    state_dir: PathText = ""
    runtime_dir: PathText = ""
    drain_timeout: PositiveTime = PositiveDuration(30)
    instance_id: InstanceId = ""
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"


class Limits(Struct, frozen=True, kw_only=True):
    """`[pool.limits]`: seconds and bytes; 0 of a `max_` key means never."""

    boot: PositiveTime = PositiveDuration(120)
    silence: PositiveTime = PositiveDuration(10)
    kill_after: PositiveTime = PositiveDuration(45)
    identity_conflict: PositiveTime = PositiveDuration(180)
    max_jobs: Count = 0
    max_age: Time = Duration(0)
    max_memory: Bytes = Size(0)


class Restart(Struct, frozen=True, kw_only=True):
    """`[pool.restart]`: seconds; `max_unavailable` in percent of the pool."""

    backoff_min: PositiveTime = PositiveDuration(0.1)
    backoff_max: PositiveTime = PositiveDuration(300)
    healthy_after: PositiveTime = PositiveDuration(60)
    max_unavailable: Share = Percent(25)


class ModelServer(Struct, frozen=True, kw_only=True):
    """`[pool.providers.NAME]`: where models are generated with. After loading every field has its value.

    `silence` is seconds: the longest wait for the next piece of an answer.
    """

    api: ModelApi = None
    base_url: str = ""
    api_key_file: PathText = ""
    silence: PositiveTime = PositiveDuration(300)


class Pool(Struct, frozen=True, kw_only=True):
    """One `[[pool]]`. Directories of `module_path` and files of `modules` are absolute after loading.

    `providers` has what `[pool.providers.NAME]` says, and Ollama's usual place if `models` names it and nothing else is
    said of it. `workspace` is where environment actions work.
    """

    name: PoolName = "default"
    workers: Workers = 2
    concurrency: Concurrency = 1
    queues: Queues = msgspec.field(default_factory=lambda: ["default"])
    actions: Words = msgspec.field(default_factory=list)
    models: Models = msgspec.field(default_factory=list)
    providers: dict[str, ModelServer] = msgspec.field(default_factory=dict)
    modules: Modules = msgspec.field(default_factory=list)
    entry_points: Words = msgspec.field(default_factory=list)
    module_path: PathList = msgspec.field(default_factory=lambda: ["."])
    preload: bool = True
    stock_actions: bool = True
    environment_actions: bool = False
    workspace: Workspace = ""
    environment_id: str = ""
    journal: Journal = "write"
    limits: Limits = Limits()
    restart: Restart = Restart()


class Config(Struct, frozen=True, kw_only=True):
    """A whole pool file, resolved. The last fields are no TOML keys.

    `notes` are sentences to log once. `exit_when_refused`: end with exit code 77 when every slot's child was refused
    for good. `plain_instance_id`: a sole worker takes the instance id itself, without a number.
    `state_dir_numbered`: `supervisor.state_dir` is a prefix, and the first free of `<state_dir>-1`, `-2` ... is used.
    `worker_name`: the name that every worker registers with, for display.
    """

    control_plane: ControlPlane
    supervisor: Supervisor
    pool: list[Pool]
    credential: Credential
    notes: list[str] = msgspec.field(default_factory=list)
    exit_when_refused: bool = False
    plain_instance_id: bool = False
    state_dir_numbered: bool = False
    worker_name: str | None = None


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read, check and resolve a pool file. Raises ConfigurationError with every problem that was found."""
    return build(_document(path), path.resolve().parent, environ)


def runtime_directory(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Where the supervisor of a pool file has its control socket; without a file, where one has it by default.

    Only that key is looked at: whoever gives a command need not be able to read the API key. Raises ConfigurationError.
    """
    if path is None:
        return Path(_default_runtime_dir(environ))
    section = _document(path).get("supervisor", {})
    named = section.get("runtime_dir", "") if isinstance(section, dict) else ""
    return path.resolve().parent / (named if isinstance(named, str) and named else _default_runtime_dir(environ))


def build(document: dict[str, Any], directory: Path, environ: Mapping[str, str]) -> Config:
    """Check and resolve a document of the pool file's shape; relative paths are relative to `directory`.

    Raises ConfigurationError with every problem that was found.
    """
    problems: list[str] = []
    sections = _sections(document, problems)
    control_plane = _struct(ControlPlane, sections["control_plane"], "control_plane", problems)
    supervisor = _struct(Supervisor, sections["supervisor"], "supervisor", problems)
    pools = [_struct(Pool, table, f"pool[{index}]", problems) for index, table in enumerate(sections["pool"])]
    if problems or control_plane is None or supervisor is None:
        raise ConfigurationError(problems)
    found = [pool for pool in pools if pool is not None]
    notes: list[str] = []
    supervisor = _resolve_supervisor(supervisor, directory, environ, problems)
    named = frozenset(sections["control_plane"])
    control_plane = _overridden(control_plane, named, environ, notes)
    control_plane = _resolve_control_plane(control_plane, named, directory, Path(supervisor.state_dir), problems)
    if control_plane.embedded:
        _check_addresses(control_plane, supervisor, problems)
    found = [_resolve_pool(pool, index, directory, environ, problems) for index, pool in enumerate(found)]
    found = [
        _resolve_workspace(pool, index, directory, Path(supervisor.state_dir), problems)
        for index, pool in enumerate(found)
    ]
    _check_pool_names(found, problems)
    credential = _credential(control_plane, environ, problems, notes)
    project_named = "project" in named or "MOBIUS_PROJECT" in environ
    control_plane = _project_of_key(control_plane, credential, problems, named=project_named)
    if problems:
        raise ConfigurationError(problems)
    notes += [_environment_warning(pool) for pool in found if pool.environment_actions]
    return Config(control_plane=control_plane, supervisor=supervisor, pool=found, credential=credential, notes=notes)


def with_workers(config: Config, workers: int) -> Config:
    """The same configuration with another number of workers in its sole pool. Raises ConfigurationError."""
    if len(config.pool) != 1:
        names = ", ".join(pool.name for pool in config.pool)
        raise ConfigurationError(
            [f"--workers: expected a pool file with one pool, but it has {names}; set `workers` in each pool instead"]
        )
    return msgspec.structs.replace(config, pool=[msgspec.structs.replace(config.pool[0], workers=workers)])


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(_content(path).decode("utf-8"))
    except OSError as error:
        raise ConfigurationError(
            [f"{path}: the pool file cannot be read ({error.strerror}); name an existing file with -c"]
        ) from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError([f"{path}: expected a TOML file in UTF-8, but {_lower(error)}; correct it"]) from error


# --- tables and values -------------------------------------------------------------------------------------------


def _sections(document: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    known = ("control_plane", "supervisor", "pool")
    problems.extend(_unknown(key, "", known) for key in document if key not in known)
    sections: dict[str, Any] = {}
    for key in ("control_plane", "supervisor"):
        table = document.get(key, {})
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table, got {_shown(table)}; write [{key}] above its keys")
            table = {}
        sections[key] = table
    pools = document.get("pool", [])
    if not isinstance(pools, list) or not all(isinstance(pool, dict) for pool in pools):
        problems.append("pool: expected one or more tables; write [[pool]] (two brackets) above the keys of each")
        pools = []
    elif not pools:
        problems.append("pool: expected at least one pool, got none; add a [[pool]] table")
    sections["pool"] = pools
    return sections


def _struct(struct: type[Any], table: dict[str, Any], path: str, problems: list[str]) -> Any:
    """One table as its Struct, or None after adding what is wrong with it to `problems`."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    before = len(problems)
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{path}.{key}"
        if key not in fields:
            problems.append(_unknown(key, path, tuple(fields)))
        elif typing.get_origin(fields[key].type) is dict:
            values[key] = _named(typing.get_args(fields[key].type)[1], value, where, problems)
        elif isinstance(fields[key].type, type) and issubclass(fields[key].type, Struct):
            if isinstance(value, dict):
                values[key] = _struct(fields[key].type, value, where, problems)
            else:
                problems.append(f"{where}: expected a table, got {_shown(value)}; write [pool.{key}] above its keys")
        else:
            values[key] = _value(fields[key].type, value, where, problems)
    return struct(**values) if len(problems) == before else None


def _named(struct: type[Any], tables: Any, where: str, problems: list[str]) -> Any:
    """Tables with names of the user's own, such as `[pool.providers.lab]`."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        problems.append(f"{where}: expected tables, got {_shown(tables)}; write [pool.providers.NAME] above keys")
        return {}
    problems.extend(
        f"{where}: expected names as those of pools, got {_shown(name)}; rename it"
        for name in tables
        if re.fullmatch(_NAME, name) is None
    )
    return {name: _struct(struct, table, f"{where}.{name}", problems) for name, table in tables.items()}


def _value(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    try:
        return msgspec.convert(value, kind, dec_hook=_parse)
    except (msgspec.ValidationError, ValueError):
        expected, example = _expectation(kind)
        key = where.rpartition(".")[2]
        problems.append(f"{where}: expected {expected}, got {_shown(value)}; write for example {key} = {example}")
        return None


def _parse(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004 - msgspec reports a ValueError as the value's fault
    return kind.parse(value)


def _expectation(kind: Any) -> tuple[str, str]:
    """What a key takes, in words, and an example in TOML."""
    if typing.get_origin(kind) is Annotated:
        for meta in typing.get_args(kind)[1:]:
            if isinstance(meta, Meta) and meta.description and meta.examples:
                return meta.description, _toml(meta.examples[0])
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return "one of " + ", ".join(_toml(word) for word in words), _toml(words[0])
    return {bool: ("true or false", "true")}.get(kind, ("a text in quotes", '"..."'))


def _toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _shown(value: Any) -> str:
    """A value as a short piece of a sentence."""
    if isinstance(value, dict):
        return "a table"
    try:
        text = _toml(value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _lower(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def _unknown(key: str, path: str, known: tuple[str, ...]) -> str:
    where = f"{path}.{key}" if path else key
    if key == "api_key":
        return f"{where}: unknown key; a key never stands in this file: put it into the file that `api_key_file` names"
    synonyms = {word: name for word, name in _SYNONYMS.items() if name in known}
    close = difflib.get_close_matches(key, [*known, *synonyms], n=1)
    hint = (
        f"did you mean `{synonyms.get(close[0], close[0])}`?"
        if close
        else f"known are {', '.join(f'`{name}`' for name in known)}."
    )
    return f"{where}: unknown key; {hint}"


# --- rules that span keys ----------------------------------------------------------------------------------------


def _resolve_supervisor(
    supervisor: Supervisor, directory: Path, environ: Mapping[str, str], problems: list[str]
) -> Supervisor:
    log_level = environ.get("MOBIUS_LOG_LEVEL", supervisor.log_level).lower()
    if log_level not in typing.get_args(LogLevel):
        expected, _ = _expectation(LogLevel)
        problems.append(f"MOBIUS_LOG_LEVEL: expected {expected}, got {_shown(log_level)}; correct or unset it")
    if supervisor.listen:
        _check_listen(supervisor.listen, "supervisor.listen", problems, lowest_port=0)
    home = Path(environ.get("HOME") or "/")
    state = environ.get("STATE_DIRECTORY", "").split(":")[0] or _under(
        environ.get("XDG_STATE_HOME"), home / ".local/state", "mobius-supervisor"
    )
    return msgspec.structs.replace(
        supervisor,
        log_level=log_level,
        state_dir=str(directory / (supervisor.state_dir or state)),
        runtime_dir=str(directory / (supervisor.runtime_dir or _default_runtime_dir(environ))),
    )


def _default_runtime_dir(environ: Mapping[str, str]) -> str:
    return environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or _under(
        environ.get("XDG_RUNTIME_DIR"), Path(environ.get("HOME") or "/") / ".local/run", "mobius-supervisor"
    )


def _under(base: str | None, fallback: Path, name: str) -> str:
    return str((Path(base) if base else fallback) / name)


def _overridden(
    control_plane: ControlPlane, named: frozenset[str], environ: Mapping[str, str], notes: list[str]
) -> ControlPlane:
    """Environment over file; not for an embedded control plane: what points elsewhere is not meant for it."""
    if control_plane.embedded:
        ignored = [name for name in ("MOBIUS_API_URL", "MOBIUS_PROJECT", "MOBIUS_API_KEY") if environ.get(name)]
        if ignored:
            notes.append(f"{', '.join(ignored)} ignored: the control plane is embedded")
        if "api_url" not in named:
            control_plane = msgspec.structs.replace(control_plane, api_url=f"http://{control_plane.listen}")
        return control_plane
    return msgspec.structs.replace(
        control_plane,
        api_url=environ.get("MOBIUS_API_URL") or control_plane.api_url,
        project=environ.get("MOBIUS_PROJECT", control_plane.project),
    )


def _resolve_control_plane(
    control_plane: ControlPlane, named: frozenset[str], directory: Path, state_dir: Path, problems: list[str]
) -> ControlPlane:
    if control_plane.embedded:
        _check_listen(control_plane.listen, "control_plane.listen", problems, lowest_port=1)
        remedy = "put a proxy that ends TLS in front, or run mobius-control-plane by itself"
        _check_loopback(control_plane.listen, "control_plane.listen", remedy, problems)
        if control_plane.metrics_listen:
            _check_listen(control_plane.metrics_listen, "control_plane.metrics_listen", problems, lowest_port=1)
            remedy = "scrape /metrics of `listen` with a key of scope reader from elsewhere"
            _check_loopback(control_plane.metrics_listen, "control_plane.metrics_listen", remedy, problems)
    if not control_plane.embedded or "api_url" in named:
        _check_url(control_plane.api_url, problems)
    if control_plane.lease_duration < 2 * control_plane.heartbeat_cadence:
        problems.append(
            f"control_plane.lease_duration: expected at least twice heartbeat_cadence "
            f"({control_plane.heartbeat_cadence:g}s), got {control_plane.lease_duration:g}s; "
            "raise it or lower the cadence"
        )
    control_plane = _resolve_tls(control_plane, directory, problems)
    key_base = directory if "api_key_file" in named or not control_plane.embedded else state_dir
    store_base = directory if "store" in named else state_dir
    return msgspec.structs.replace(
        control_plane,
        api_url=control_plane.api_url.rstrip("/"),
        api_key_file=str(key_base / control_plane.api_key_file),
        store=_resolve_store(control_plane.store, store_base, problems),
        store_password_file=_resolve_password_file(control_plane, directory, problems),
    )


def tls_files(control_plane: ControlPlane) -> TlsFiles:
    """The keys that TLS takes."""
    return TlsFiles(**{key: getattr(control_plane, key) for key in TlsFiles.__struct_fields__})


def _resolve_tls(control_plane: ControlPlane, directory: Path, problems: list[str]) -> ControlPlane:
    paths = {key: getattr(control_plane, key) for key in TlsFiles.__struct_fields__}
    resolved = msgspec.structs.replace(
        control_plane, **{key: str(directory / path) if path else "" for key, path in paths.items()}
    )
    try:
        if any(paths.values()):
            client_context(tls_files(resolved))
    except TlsFilesError as error:
        problems.append(f"control_plane.{error.key}: {error}; name a readable PEM file, or remove the key")
    return resolved


def _resolve_store(store: str, base: Path, problems: list[str]) -> str:
    if is_postgres(store):
        # The control plane judges the rest of it; what a process list would show is refused here and now.
        if re.match(r"[a-z]+://[^/@]*:[^/@]*@", store) or re.search(r"[?&](ssl)?password=", store):
            problems.append(
                "control_plane.store: holds a password, which every list of processes would show; put it into a file "
                "of mode 0600 and name that by store_password_file"
            )
        return store
    for prefix, root in (("sqlite:///", Path("/")), ("sqlite:", base)):
        path = store.removeprefix(prefix)
        if path not in (store, "") and not (prefix == "sqlite:" and path.startswith("/")):
            return f"sqlite://{root / path}"
    problems.append(
        'control_plane.store: expected "sqlite:///absolute/path.db", "sqlite:path.db" (relative to this file) or '
        '"postgresql://user@host/database"; write for example store = "sqlite:control-plane.db"'
    )
    return store


def is_postgres(store: str) -> bool:
    """Whether the control plane's store is a PostgreSQL database."""
    return store.startswith(("postgresql://", "postgres://"))


def _resolve_password_file(control_plane: ControlPlane, directory: Path, problems: list[str]) -> str:
    path = control_plane.store_password_file
    if not path:
        return ""
    if not is_postgres(control_plane.store):
        problems.append(
            "control_plane.store_password_file: a SQLite file has no password; leave it out, or name a "
            "postgresql:// store"
        )
    return str(directory / path)


def _check_url(url: str, problems: list[str]) -> None:
    """The URL is not repeated in the sentence: it might hold a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    remedy = 'write for example api_url = "https://api.mobiusops.ai"'
    if parts.scheme not in ("http", "https"):
        given = f"got the scheme {_shown(parts.scheme)}" if parts.scheme else "got none of both"
        problems.append(f"control_plane.api_url: expected a URL of http:// or https://, {given}; {remedy}")
    elif not host or parts.username is not None or parts.query or parts.fragment:
        problems.append(
            "control_plane.api_url: expected a URL of scheme, host and optional port and path, "
            f"without user, query or fragment; {remedy}"
        )
    elif parts.scheme == "http" and not is_loopback(host):
        problems.append(
            "control_plane.api_url: expected https:// for a host that is not this machine (http would send the API key "
            f"in clear text); {remedy}"
        )


def _check_listen(listen: str, path: str, problems: list[str], *, lowest_port: int) -> None:
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not lowest_port <= int(port) <= 65535:
        problems.append(
            f"{path}: expected an address and a port from {lowest_port} to 65535, got {_shown(listen)}; "
            f'write for example listen = "127.0.0.1:8780"'
        )


def _check_addresses(control_plane: ControlPlane, supervisor: Supervisor, problems: list[str]) -> None:
    """Each is listened at by one."""
    taken: dict[str, str] = {}
    for path, listen in (
        ("control_plane.listen", control_plane.listen),
        ("supervisor.listen", supervisor.listen),
        ("control_plane.metrics_listen", control_plane.metrics_listen),
    ):
        if listen and listen in taken:
            problems.append(
                f"{path}: expected an address of its own, got {_shown(listen)}, which "
                f"{taken[listen]} has already; change one of the two ports"
            )
        taken.setdefault(listen, path)


def _check_loopback(listen: str, path: str, remedy: str, problems: list[str]) -> None:
    """The embedded control plane speaks plain HTTP: API keys would cross the network for everybody to read, and whoever
    asks for metrics needs none."""
    host = listen.rpartition(":")[0].strip("[]")
    if host and not is_loopback(host):
        problems.append(
            f"{path}: expected an address of this machine alone, got {_shown(listen)}; write 127.0.0.1 and {remedy}"
        )


def _resolve_pool(pool: Pool, index: int, directory: Path, environ: Mapping[str, str], problems: list[str]) -> Pool:
    path = f"pool[{index}]"
    module_path = [str(directory / entry) for entry in pool.module_path]
    for position, entry in enumerate(module_path):
        if not Path(entry).is_dir():
            problems.append(
                f"{path}.module_path[{position}]: expected an existing directory, got {_shown(entry)}; "
                "create it or correct the path"
            )
    modules = [str(directory / entry) if entry.endswith(".py") else entry for entry in pool.modules]
    for position, entry in enumerate(modules):
        if entry.endswith(".py") and not Path(entry).is_file():
            problems.append(
                f"{path}.modules[{position}]: expected an existing file, or the name of a module, got {_shown(entry)}; "
                "create it or correct the path"
            )
    limits, restart = pool.limits, pool.restart
    if limits.silence >= limits.kill_after:
        problems.append(
            f"{path}.limits.kill_after: expected more than silence ({limits.silence:g}s), got {limits.kill_after:g}s; "
            "raise it or lower silence"
        )
    if restart.backoff_min > restart.backoff_max:
        problems.append(
            f"{path}.restart.backoff_min: expected at most backoff_max ({restart.backoff_max:g}s), "
            f"got {restart.backoff_min:g}s; lower it or raise backoff_max"
        )
    providers = dict(pool.providers)
    if any(model.startswith(f"{_OLLAMA}/") for model in pool.models):
        providers.setdefault(_OLLAMA, ModelServer())
    providers = {
        name: _resolve_provider(name, server, f"{path}.providers.{name}", directory, environ, problems)
        for name, server in providers.items()
    }
    return msgspec.structs.replace(pool, modules=modules, module_path=module_path, providers=providers)


def _resolve_workspace(pool: Pool, index: int, directory: Path, state_dir: Path, problems: list[str]) -> Pool:
    """Where environment actions work: by default a directory of the pool's own, below the state directory."""
    if not pool.environment_actions:
        if pool.workspace:
            problems.append(
                f"pool[{index}].workspace: expected environment_actions = true, which this key is for; "
                "set it, or remove the key"
            )
        return pool
    workspace = directory / pool.workspace if pool.workspace else state_dir / "workspaces" / pool.name
    if pool.workspace and not workspace.is_dir():
        problems.append(
            f"pool[{index}].workspace: expected an existing directory, got {_shown(str(workspace))}; "
            "create it or correct the path"
        )
    return msgspec.structs.replace(pool, workspace=str(workspace))


def _environment_warning(pool: Pool) -> str:
    """What whoever turned them on should know. Which actions are offered is told apart: a shell may do everything."""
    if pool.actions and "environment.bash" not in pool.actions:
        return f"pool {pool.name}: environment_actions: jobs may change what is in {pool.workspace}"
    return (
        f"pool {pool.name}: environment_actions: jobs may run commands, in {pool.workspace} and as this user: they can "
        "read whatever this user can read, the API key's file included (docs/environment-actions.md)"
    )


# --- model servers ------------------------------------------------------------------------------------------------


def _resolve_provider(
    name: str, server: ModelServer, path: str, directory: Path, environ: Mapping[str, str], problems: list[str]
) -> ModelServer:
    api = server.api or (name if name in _MODEL_SERVERS else None)
    if api is None:
        expected, example = _expectation(ModelApi)
        problems.append(f"{path}.api: expected {expected}, got nothing; write for example api = {example}")
        return server
    base_url = server.base_url or _MODEL_SERVERS[api]
    credential = Path(environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent") / f"{name}-{CREDENTIAL_NAME}"
    key_file = ""
    if credential.exists():
        key_file = str(credential)
    elif server.api_key_file:
        key_file = str(directory / server.api_key_file)
    elif not server.base_url and api != _OLLAMA:
        problems.append(
            f"{path}.api_key_file: expected a file with the key for {base_url}, got none; name the file, or give a "
            f"systemd credential {name}-{CREDENTIAL_NAME}"
        )
    if key_file and not os.access(key_file, os.R_OK):
        problems.append(f"{path}.api_key_file: expected a readable file with the key, but {key_file} is not one")
    _check_provider_url(base_url, path, problems, with_key=bool(key_file))
    return msgspec.structs.replace(
        server, api=typing.cast("Any", api), base_url=base_url.rstrip("/"), api_key_file=key_file
    )


def _check_provider_url(url: str, path: str, problems: list[str], *, with_key: bool) -> None:
    """The URL is not repeated in the sentence: it might hold a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
        problems.append(
            f"{path}.base_url: expected a URL of http:// or https://, host and optional port and path, without user, "
            f'query or fragment; write for example base_url = "{_MODEL_SERVERS[_OLLAMA]}"'
        )
    elif with_key and parts.scheme == "http" and not is_loopback(host):
        problems.append(
            f"{path}.base_url: expected https:// for a host that is not this machine, because http would send the key "
            "in clear text; use https, or leave the key out if the server needs none"
        )


def _check_pool_names(pools: list[Pool], problems: list[str]) -> None:
    first: dict[str, int] = {}
    for index, pool in enumerate(pools):
        if pool.name in first:
            problems.append(
                f"pool[{index}].name: expected a name of its own, got {_shown(pool.name)}, "
                f"which pool[{first[pool.name]}] has already; rename one of the two"
            )
        first.setdefault(pool.name, index)


# --- the credential ----------------------------------------------------------------------------------------------


def _credential(
    control_plane: ControlPlane, environ: Mapping[str, str], problems: list[str], notes: list[str]
) -> Credential:
    """The first that there is: MOBIUS_API_KEY, the systemd credential, `api_key_file`."""
    if control_plane.embedded:
        return Credential(source="control_plane.api_key_file", key_file=control_plane.api_key_file)
    if environ.get("MOBIUS_API_KEY"):
        credential = Credential(source="MOBIUS_API_KEY", key=Secret(environ["MOBIUS_API_KEY"].strip()))
    else:
        system = Path(environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent") / CREDENTIAL_NAME
        if system.exists():
            credential = Credential(source="CREDENTIALS_DIRECTORY/api-key", key_file=str(system))
        else:
            credential = Credential(source="control_plane.api_key_file", key_file=control_plane.api_key_file)
            _note_if_readable(Path(control_plane.api_key_file), notes)
    try:
        key = read_key(credential)
    except OSError as error:
        problems.append(
            f"{credential.source}: expected a readable file with the API key, but {credential.key_file} is not "
            f"({error.strerror}); write the key into it or set MOBIUS_API_KEY"
        )
    else:
        if _API_KEY.fullmatch(key) is None:
            problems.append(
                f"{credential.source}: expected an API key, which begins with mbx_ or mbc_ and has no spaces; "
                "put the key there as it was issued, and nothing else"
            )
    return credential


def _note_if_readable(key_file: Path, notes: list[str]) -> None:
    """Not refused: where secrets are mounted (Kubernetes), the mode is somebody else's choice."""
    with contextlib.suppress(OSError):
        if others_can_read(key_file):
            notes.append(f"control_plane.api_key_file: other users of this machine may read {key_file}; chmod 600 it")


def read_key(credential: Credential) -> str:
    """The API key itself. Raises OSError when its file cannot be read."""
    if credential.key is not None:
        return credential.key.reveal()
    return _content(Path(credential.key_file or ""), 4096).decode("utf-8", "replace").strip()


def _content(path: Path, most: int = -1) -> bytes:
    """At most so many bytes of a file. Raises OSError, also for what is none: a FIFO would be waited for for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, which has no path
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Is a directory" if stat.S_ISDIR(mode) else "Not a regular file")
        return file.read(most)


def _project_of_key(
    control_plane: ControlPlane, credential: Credential, problems: list[str], *, named: bool
) -> ControlPlane:
    """A key may end in `.<project handle>`: the project is then the key's (contract, "Dialects")."""
    if control_plane.embedded or problems:
        return control_plane
    match = _API_KEY.fullmatch(read_key(credential))
    project = match["project"] if match else None
    if project is None or project == control_plane.project:
        return control_plane
    if named:
        problems.append(
            f"control_plane.project: expected {_shown(project)}, the project that the API key belongs to, "
            f"got {_shown(control_plane.project)}; remove the key `project` or use another API key"
        )
        return control_plane
    return msgspec.structs.replace(control_plane, project=project)
