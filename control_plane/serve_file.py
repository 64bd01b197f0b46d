"""What `serve --config FILE` reads: the command's options as a TOML file, for servers that are set up alike."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import tomli
from msgspec import Struct, field

from control_plane.config import ConfigurationError, ProjectDialect


class ServeFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each key is the option of its name. `project_dialect` is a table: project = "dialect"."""

    listen: str | None = None
    store: str | None = None
    store_password_file: str | None = None
    bootstrap_key_file: str | None = None
    dialect: ProjectDialect | None = None
    project_dialect: dict[str, ProjectDialect] = field(default_factory=dict)
    lease_duration: str | None = None
    heartbeat_cadence: str | None = None
    insecure_listen: bool | None = None
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    tls_client_ca_file: str | None = None
    metrics_listen: str | None = None
    rate_limit: int | None = None
    connections_per_key: int | None = None
    trusted_proxy: list[str] | None = None
    keep_finished: str | None = None
    keep_deltas: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] | None = None


def read(path: Path) -> dict[str, Any]:
    """The options that the file gives, as the command line would. Relative paths are relative to the file. Raises
    ConfigurationError."""
    try:
        table = tomli.loads(path.read_text())
        given = msgspec.convert(table, ServeFile)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {error}") from error
    except tomli.TOMLDecodeError as error:
        raise ConfigurationError(f"--config {path} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"--config {path}: {'; '.join(_faults(table))}") from error
    options = {key: value for key, value in msgspec.structs.asdict(given).items() if value is not None}
    options["project_dialect"] = [f"{project}={dialect}" for project, dialect in given.project_dialect.items()]
    options |= {key: str(path.parent / value) for key, value in options.items() if key.endswith("_file")}
    store = given.store or ""
    if store.startswith("sqlite:") and not store.startswith("sqlite:/"):
        options["store"] = f"sqlite:{path.parent / store.removeprefix('sqlite:')}"
    return options


def _faults(table: dict[str, Any]) -> Iterator[str]:
    known = ServeFile.__struct_fields__
    for key, value in table.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"
            yield f"{key}: no such key; {remedy}"
            continue
        try:
            msgspec.convert({key: value}, ServeFile)
        except msgspec.ValidationError as error:
            sentence = str(error).replace(" | null", "")  # which TOML does not have
            yield "; ".join([sentence, *_choices(key)])


def _choices(key: str) -> Iterator[str]:
    """What msgspec does not say of a value that is none of a few."""
    for kind in get_args(get_type_hints(ServeFile)[key]):
        if get_origin(kind) is Literal:
            yield f"expected one of {', '.join(get_args(kind))}"
