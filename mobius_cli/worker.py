"""`mobius worker`: a supervisor from flags instead of a pool file."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import msgspec

from mobius_cli.errors import CommandError, SettingError, UsageError
from mobius_cli.options import api_key_file_option, api_url_option, ca_file_option, connect, project_option
from supervisor import config as pool_file
from supervisor.errors import ConfigurationError, SupervisorError

_BOTH_KNOBS = (
    "--concurrency and --workers exclude each other: --concurrency N is one process with N jobs in flight (one "
    "presence row, the best throughput; take it if in doubt), --workers N is N processes with one job each (N presence "
    "rows that drain and are observed independently)"
)


_FLAGS = {
    "supervisor.listen": "--listen",
    "control_plane.api_key_file": "--api-key-file",
    "pool[0].modules": "--modules",
    "pool[0].entry_points": "--entry-points",
    "pool[0].actions": "--actions",
    "pool[0].models": "--models",
    "pool[0].workspace": "--workspace",
}
_PROVIDERS = "pool[0].providers."


@click.command()
@click.option("--queues", metavar="A,B", help="Queues to claim from (default: default).  [MOBIUS_QUEUES]")
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="One process, N jobs in flight.")
@click.option("--workers", type=click.IntRange(1, 1000), metavar="N", help="N processes, one job in flight in each.")
@click.option("--instance-id", metavar="ID", help="Fixed identity (default: detected). With --workers, its prefix.")
@click.option("--actions", metavar="A,B", help="Advertise only these actions (default: every registered one).")
@click.option("--models", metavar="P/M,...", help="Models to generate with, as provider/model or provider/*.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="P=API+URL",
    help="A model server, as lab=openai+http://127.0.0.1:8000/v1. API is ollama, openai or anthropic. Repeatable; "
    "ollama on this machine is known.",
)
@click.option(
    "--provider-key-file",
    "provider_keys",
    multiple=True,
    metavar="P=FILE",
    help="The file with the key of a --provider. Repeatable.",
)
@click.option("--name", help="Name of the worker for people, shown beside its identity.")
@click.option("--environment-id", metavar="ID", help="Take only jobs that are pinned to this environment.")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Register the environment actions (shell, files, git, logs) with this directory to work in.",
)
@click.option("--modules", metavar="M1,M2", help="Python modules, or files, with @action handlers.")
@click.option(
    "--entry-points",
    metavar="E1,E2",
    help="Handlers of installed packages, by entry points of the group mobius.actions; * is all of them.",
)
@click.option(
    "--module-path",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Directory to import them from (default: the current one).",
)
@click.option("--listen", metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there (default: nowhere).")
@api_url_option
@api_key_file_option
@project_option
@ca_file_option
def worker(
    *,
    concurrency: int | None,
    workers: int | None,
    api_url: str | None,
    api_key_file: Path | None,
    project: str | None,
    ca_file: str | None,
    **flags: Any,
) -> int:
    """Run a worker: claim jobs, execute them, report. Ctrl-C drains it.

    It registers the stock actions (print, fail, json, time, random) and the handlers of --modules, and generates with
    the models of --models.
    """
    if concurrency is not None and workers is not None:
        raise UsageError(_BOTH_KNOBS)
    connection = connect(api_url=api_url, api_key_file=api_key_file, project=project, ca_file=ca_file)
    pool = {
        "name": "worker",
        "workers": workers or 1,
        "concurrency": concurrency or 1,
        "queues": _queues(flags["queues"]),
        "actions": _checked("--actions", pool_file.Words, _words(flags["actions"])),
        "models": _checked("--models", pool_file.Models, _words(flags["models"])),
        "providers": _providers(flags["providers"], flags["provider_keys"]),
        "modules": _checked("--modules", pool_file.Modules, _words(flags["modules"])),
        "entry_points": _checked("--entry-points", pool_file.Words, _words(flags["entry_points"])),
        "module_path": [str(flags["module_path"])],
        "environment_id": flags["environment_id"] or "",
    }
    if flags["workspace"] is not None:
        pool |= {"environment_actions": True, "workspace": str(flags["workspace"])}
    if not flags["module_path"].is_dir():
        raise UsageError(f"--module-path: {str(flags['module_path'])!r} is no directory; create it or correct the path")
    environ = {name: value for name, value in os.environ.items() if name != "CREDENTIALS_DIRECTORY"}
    environ |= {"MOBIUS_API_URL": connection.api_url, "MOBIUS_PROJECT": connection.project}
    tls = msgspec.structs.asdict(connection.tls)
    control_plane = {key: str(Path(path).absolute()) for key, path in tls.items() if path}
    if api_key_file is not None:
        # The children read the file themselves, and again after a 401: a key can be replaced under a running worker.
        environ.pop("MOBIUS_API_KEY", None)
        control_plane["api_key_file"] = str(api_key_file.absolute())
    supervisor = {
        "listen": flags["listen"] or "",
        "instance_id": _checked("--instance-id", pool_file.InstanceId, flags["instance_id"] or ""),
        "state_dir": str(_state_home() / "mobius" / "worker"),
        "runtime_dir": str(_state_home() / "mobius"),
    }
    document = {"control_plane": control_plane, "supervisor": supervisor, "pool": [pool]}
    # The rest of the supervisor loads an event loop, metrics and an HTTP server, which no other command needs.
    from supervisor.__main__ import run  # noqa: PLC0415

    return run(_config(document, environ, name=flags["name"], alone=workers is None), complain=_complain)


def _config(document: dict[str, Any], environ: dict[str, str], *, name: str | None, alone: bool) -> pool_file.Config:
    """`alone`: the only process, whose identity has no number. Raises CommandError."""
    try:
        config = pool_file.build(document, Path.cwd(), environ)
    except ConfigurationError as error:
        raise _as_flags(error) from error
    return msgspec.structs.replace(
        config, worker_name=name, exit_when_refused=True, plain_instance_id=alone, state_dir_numbered=True
    )


def _as_flags(error: ConfigurationError) -> CommandError:
    fault: type[CommandError] = UsageError if error.problems[0].startswith("supervisor.listen:") else SettingError
    return fault("\n".join(_with_flags(problem) for problem in error.problems))


def _complain(error: SupervisorError) -> None:
    for line in str(error).splitlines():
        click.echo(f"mobius: {_with_flags(line)}", err=True)


def _with_flags(sentence: str) -> str:
    """The same sentence about flags and variables instead of keys of a file."""
    key, colon, rest = sentence.partition(":")
    if key.startswith(_PROVIDERS):
        name, _, field = key.removeprefix(_PROVIDERS).partition(".")
        return f"{'--provider-key-file' if field == 'api_key_file' else '--provider'} {name}{colon}{rest}"
    rest = rest.replace("`module_path`", "--module-path").replace('write listen = ""', "leave --listen out")
    entry = re.sub(r"\[\d+\]$", "", key)
    return f"{_FLAGS.get(entry, key)}{colon}{rest}"


def _queues(option: str | None) -> list[str]:
    if option is not None:
        queues: list[str] = _checked("--queues", pool_file.Queues, _words(option))
        return queues
    variable = os.environ.get("MOBIUS_QUEUES", "")
    if not variable.strip():
        return ["default"]
    try:
        return _checked("MOBIUS_QUEUES", pool_file.Queues, _words(variable))  # type: ignore[no-any-return]
    except UsageError as error:
        raise SettingError(str(error)) from error


def _providers(providers: tuple[str, ...], key_files: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The tables that a pool file would have."""
    tables: dict[str, dict[str, str]] = {}
    for text in providers:
        name, equals, where = text.partition("=")
        api, plus, url = where.partition("+")
        if not name or not equals or not plus or "://" not in url:
            raise UsageError(
                f"--provider: expected NAME=API+URL, got {text!r}; write for example lab=openai+http://127.0.0.1:8000/v1"
            )
        tables[name] = {"api": api, "base_url": url}
    for text in key_files:
        name, equals, file = text.partition("=")
        if not name or not equals or not file:
            raise UsageError(f"--provider-key-file: expected NAME=FILE, got {text!r}; write for example lab=./lab-key")
        tables.setdefault(name, {})["api_key_file"] = str(Path(file).absolute())
    return tables


def _words(text: str | None) -> list[str]:
    """`a, b` -> ["a", "b"]; an empty entry stays and is refused."""
    return [] if text is None else [word.strip() for word in text.split(",")]


def _checked(option: str, kind: Any, value: Any) -> Any:
    """`value`, if the pool file would take it. Raises UsageError that names the option."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        expected = next(meta.description for meta in get_args(kind)[1:]) if get_origin(kind) is Annotated else kind
        shown = ",".join(value) if isinstance(value, list) else value
        raise UsageError(f"{option}: expected {expected}, got {shown!r}") from error


def _state_home() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return Path(home) if home and Path(home).is_absolute() else Path.home() / ".local" / "state"
