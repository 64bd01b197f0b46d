"""A real supervisor in a process of its own, followed by its JSON log.

    with SupervisorProcess(tmp_path, plane, workers=2) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        supervisor.terminate()

Every wait is for a line of the log, with a deadline; nothing sleeps. On the way out whatever is left is killed, and
`leftovers` names it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.process_table import living

WAIT_TIMEOUT = 30.0
ROOT = Path(__file__).resolve().parents[2]


def pool_file(directory: Path, plane: ControlPlaneProcess, **settings: Any) -> Path:
    """Write a pool file for `plane`: keys of `[[pool]]` as they are, `supervisor`, `limits` and `restart` as tables."""
    supervisor = {
        "listen": "",
        "state_dir": "state",
        "runtime_dir": "run",
        "instance_id": "box",
        "drain_timeout": "20s",
    }
    supervisor |= {"log_format": "json", "log_level": "debug"}
    supervisor |= settings.pop("supervisor", {})
    plane_keys = {"api_url": plane.url, "api_key_file": str(plane.key_file), **settings.pop("control_plane", {})}
    limits, restart = settings.pop("limits", {}), settings.pop("restart", {})
    pool = {"name": "default", "workers": 1, "modules": ["tests.support.gate_handlers"], "module_path": [str(ROOT)]}
    pool |= settings
    lines = ["[control_plane]", *(f"{key} = {json.dumps(value)}" for key, value in plane_keys.items()), "[supervisor]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in supervisor.items()]
    lines += ["[[pool]]", *(f"{key} = {json.dumps(value)}" for key, value in pool.items())]
    lines += ["[pool.limits]", *(f"{key} = {json.dumps(value)}" for key, value in limits.items())]
    lines += ["[pool.restart]", *(f"{key} = {json.dumps(value)}" for key, value in restart.items())]
    path = directory / "pool.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class SupervisorProcess:
    """`settings` are those of `pool_file`. `lines` are the entries of the log so far.

    `environment` is laid over the test's own, `root` is where our packages are taken from; `heard` gets every entry of
    the log, on a thread of its own.
    """

    def __init__(
        self,
        directory: Path,
        plane: ControlPlaneProcess,
        *,
        environment: dict[str, str] | None = None,
        heard: Callable[[dict[str, Any]], None] = lambda _entry: None,
        root: Path = ROOT,
        **settings: Any,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.state = directory / "state"
        self.file = pool_file(directory, plane, **settings)
        self.lines: list[dict[str, Any]] = []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("MOBIUS_")}
        self._environment |= environment or {}
        self._heard = heard
        self._root = root
        self._changed = threading.Condition()
        self._ended = False
        self._family: dict[int, psutil.Process] = {}
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it. Waits for nothing."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supervisor", "-c", str(self.file)],
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=self._environment,
        )
        # Only now: until here the end of a predecessor's log was the end.
        with self._changed:
            self._ended = False
        threading.Thread(target=self._follow, args=(self.process,), daemon=True).start()

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line.decode().rstrip()}
            with self._changed:
                self.lines.append(entry)
                self._changed.notify_all()
            self._heard(entry)
        with self._changed:
            # A predecessor's log may end after its successor has begun.
            self._ended = self._ended or process is self.process
            self._changed.notify_all()

    def matching(self, event: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Entries of that event (its text, or how it begins) with these fields."""
        for entry in self.lines:
            if entry["event"].startswith(event) and all(entry.get(key) == value for key, value in fields.items()):
                yield entry

    def wait_for(
        self, event: str, *, count: int = 1, timeout: float = WAIT_TIMEOUT, contains: str = "", **fields: Any
    ) -> dict[str, Any]:
        """The `count`-th entry of that event with these fields, as soon as it is there; only events that hold
        `contains` count."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(found := [each for each in self.matching(event, **fields) if contains in each["event"]]) < count:
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    why = "it ended" if self._ended else f"{timeout} s are over"
                    raise AssertionError(f"no {event!r} {fields} in the log ({why}):\n{self.text()}")
                self._changed.wait(left)
        return found[count - 1]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An operator's command to it, to its end."""
        command = [sys.executable, "-m", "supervisor", "-c", str(self.file), *words]
        return subprocess.run(
            command, cwd=self._root, env=self._environment, capture_output=True, text=True, timeout=90, check=False
        )

    def text(self) -> str:
        """The whole log, for people."""
        return "\n".join(json.dumps(entry) for entry in self.lines)

    def family(self) -> list[psutil.Process]:
        """Every process that it has now; remembered, so that `leftovers` can look for them later."""
        members = psutil.Process(self.process.pid).children(recursive=True)
        self._family |= {member.pid: member for member in members}
        return members

    def leftovers(self) -> list[psutil.Process]:
        """Processes of its family that still run."""
        return living(self._family.values())

    def terminate(self, timeout: float = WAIT_TIMEOUT) -> int:
        """SIGTERM; returns its exit code, when its log has been read to the end."""
        self.family()
        self.process.send_signal(signal.SIGTERM)
        return self.wait_for_end(timeout)

    def wait_for_end(self, timeout: float = WAIT_TIMEOUT) -> int:
        """Its exit code, when its log has been read to the end."""
        code = self.process.wait(timeout)
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, WAIT_TIMEOUT), "somebody else holds its log open"
        return code

    def kill(self) -> None:
        """SIGKILL, to the supervisor alone."""
        self.family()
        self.process.kill()
        self.process.wait(WAIT_TIMEOUT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.family()
            self.process.kill()
            self.process.wait(WAIT_TIMEOUT)
        for member in self.leftovers():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(self.leftovers(), timeout=WAIT_TIMEOUT)
