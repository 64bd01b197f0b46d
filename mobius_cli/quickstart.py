"""`mobius quickstart`: everything on this machine, a sample run shown as it happens, up until Ctrl-C."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from mobius_cli.connection import resolve
from mobius_cli.errors import INTERRUPTED, CannotCreateError, CommandError, RunFailedError, SettingError
from mobius_cli.http import Mobius
from mobius_cli.options import read_key
from mobius_cli.quickstart_sample import (
    PARENT,
    Shown,
    publish_samples,
    run_sample,
    show_summary,
    show_where_to_look,
)
from mobius_cli.supervisor_process import SupervisorProcess
from supervisor import config as pool_file
from supervisor.errors import ConfigurationError

T = TypeVar("T")

_DEFAULT_CONFIG = Path("configs/quickstart.toml")
_OF_THE_SOURCE_TREE = Path(__file__).resolve().parent.parent / _DEFAULT_CONFIG


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Pool file with an embedded control plane (default: configs/quickstart.toml).",
)
@click.option("--once", is_flag=True, help="Stop after the sample run instead of staying up.")
def quickstart(path: Path | None, once: bool) -> int:  # noqa: FBT001 - click passes flags by name
    """Start a control plane and two workers here, run a sample automation, stay up until Ctrl-C.

    Ctrl-C drains: jobs in hand finish, then everything stops. A second Ctrl-C shortens that.
    """
    path = path or (_DEFAULT_CONFIG if _DEFAULT_CONFIG.exists() else _OF_THE_SOURCE_TREE)
    if not path.exists():
        raise SettingError(f"there is no {path}: go to the project's source tree, or name a pool file with --config")
    config = _loaded(path)
    state = _shown(Path(config.supervisor.state_dir))
    with _sole_use(state):
        _check_free(config.control_plane.listen, "control_plane.listen", path)
        _check_free(config.supervisor.listen, "supervisor.listen", path)
        return asyncio.run(_quickstart(path, config, state / "supervisor.log", once=once))


def _loaded(path: Path) -> pool_file.Config:
    try:
        config = pool_file.load(path, os.environ)
    except ConfigurationError as error:
        raise SettingError(str(error)) from error
    if not config.control_plane.embedded:
        raise SettingError(f"{path}: control_plane.embedded is false; the quickstart brings its own: set it to true")
    if not config.supervisor.listen:
        raise SettingError(f"{path}: supervisor.listen is empty; the quickstart waits for its /readyz: set an address")
    return config


@contextlib.contextmanager
def _sole_use(state: Path) -> Iterator[None]:
    """Hold the quickstart's lock in `state`. Raises CannotCreateError while another one does."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state / "quickstart.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreateError(f"cannot use the state directory {state}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise CannotCreateError(
                f"another quickstart is running (process {holder}, state directory {state}): stop it with Ctrl-C first"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _check_free(listen: str, key: str, path: Path) -> None:
    """Say which key of which file is in the way, before a supervisor says it in its log."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        raise SettingError(f"{path}: {key} is {listen!r}; the quickstart must know the port: write a number above 0")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise CannotCreateError(
                f"cannot listen on {listen} ({os.strerror(error.errno or 0).lower()}): stop what uses it, "
                f"or change {key} in {path}"
            ) from error


def _shown(path: Path) -> Path:
    """The same file as people would name it: from here if it is below, in full otherwise."""
    path = path.resolve()
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class _Stop:
    """Requests to stop, as signals bring them: the first asks for a drain, the second shortens it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._request)

    def _request(self) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


async def _quickstart(path: Path, config: pool_file.Config, log: Path, *, once: bool) -> int:
    stop = _Stop()
    stop.listen()
    click.echo(f"starting the control plane ({config.control_plane.api_url}) and the workers; log: {log}")
    supervisor = await SupervisorProcess.start(path, log)
    shown: Shown | None = None
    fault: CommandError | None = None
    try:
        shown = await _unless_stopped(_sample(supervisor, config, path.parent, log, once=once), supervisor, stop)
        if shown is not None and not once:
            click.echo("Everything keeps running. Ctrl-C drains and stops it.")
            await _unless_stopped(stop.asked.wait(), supervisor, stop)
    except CommandError as error:
        fault = error
    finally:
        code = await _drained(supervisor, config, stop)
    if fault is not None:
        raise fault
    if code != 0:
        raise supervisor.ended_error()
    if shown is None:
        return INTERRUPTED
    status = shown.runs[PARENT].get("status")
    if status != "completed":
        raise RunFailedError(f"the sample run ended {status}")
    return 0


async def _sample(
    supervisor: SupervisorProcess, config: pool_file.Config, directory: Path, log: Path, *, once: bool
) -> Shown:
    operations_url = f"http://{config.supervisor.listen}"
    seconds = await supervisor.ready(operations_url)
    click.echo(f"ready after {seconds:.1f} s (supervisor: process {supervisor.pid})")
    key_file = _shown(Path(config.control_plane.api_key_file))
    connection = resolve(
        {},
        api_url=config.control_plane.api_url,
        api_key=read_key(key_file, "control_plane.api_key_file"),
        project=config.control_plane.project or None,
    )
    async with Mobius(connection) as mobius:
        await publish_samples(mobius, directory)
        shown = await run_sample(mobius)
        await show_summary(mobius, shown)
    if not once:
        show_where_to_look(
            api_url=connection.api_url, key_file=key_file, operations_url=operations_url, log=log, shown=shown
        )
    return shown


async def _unless_stopped(work: Awaitable[T], supervisor: SupervisorProcess, stop: _Stop) -> T | None:
    """The result of `work`, or None when a stop was asked for first. Raises SupervisorEndedError."""
    tasks = [asyncio.ensure_future(task) for task in (work, supervisor.ended(), stop.asked.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    doing, ended, _ = tasks
    if ended in done:
        ended.result()
    return doing.result() if doing in done else None  # type: ignore[return-value]


async def _drained(supervisor: SupervisorProcess, config: pool_file.Config, stop: _Stop) -> int:
    stop.asked.set()
    if not supervisor.has_ended:
        _say("draining: jobs in hand finish, then the workers and the control plane stop (Ctrl-C again: sooner)")
    code = await supervisor.drain(config.supervisor.drain_timeout, stop.hurry)
    if code == 0:
        _say("stopped")
    return code


def _say(sentence: str) -> None:
    """To a terminal that may be gone: the drain must go on without it."""
    with contextlib.suppress(OSError):
        click.echo(sentence)
