"""A real systemd for tests: PID 1 of namespaces of its own, on an overlay of this machine's root file system.

    with boot() as machine:
        machine.write("/etc/systemd/system/example.service", text)
        machine.run("systemctl", "start", "example.service")
        machine.journal("example.service")

It has systemctl, journalctl, its own network with a loopback, and the control groups that the host has (so MemoryMax=
means something). Nothing that is written inside reaches the host. It needs root and the Debian packages systemd,
util-linux, mount, procps and passwd; `why_not()` says what is missing.
"""

import contextlib
import ctypes
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("real_systemd_root.py")
_SYSTEMD = Path("/usr/lib/systemd/systemd")
_COMMANDS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "mount": "mount",
    "pkill": "procps",
    "useradd": "passwd",
    "systemctl": "systemd",
    "journalctl": "systemd",
    "systemd-analyze": "systemd",
}
_CLONE_NEWNET = 0x40000000
END_TIMEOUT = 30.0
"""Seconds for the kernel to end everything inside."""
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)

Entry = dict[str, Any]
"""One journal entry, as `journalctl --output=json` prints it."""


class BootError(RuntimeError):
    """The machine did not come up; the text is what it said."""


class CommandError(AssertionError):
    """A command inside the machine ended with another code than 0."""


def incapable() -> str | None:
    """Why this machine can never boot another one, or None: not root, or namespaces are not allowed here."""
    if os.geteuid() != 0:
        return "a real systemd needs uid 0"
    if shutil.which("unshare") is None:
        return None
    command = ["unshare", "--pid", "--mount", "--fork", "true"]
    attempt = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if attempt.returncode == 0 else f"unshare --pid --mount does not work here: {attempt.stderr.strip()}"


def why_not() -> str | None:
    """Why no machine can be booted here, or None."""
    reason = incapable()
    if reason is not None:
        return reason
    missing = {package for command, package in _COMMANDS.items() if shutil.which(command) is None}
    if not _SYSTEMD.exists():
        missing.add("systemd")
    return f"install the Debian packages {' '.join(sorted(missing))}" if missing else None


class Machine:
    """A booted systemd. `pid` is its init as the host sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def command(self, *command: str) -> list[str]:
        """The argument vector that runs `command` inside."""
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--", *command]

    def run(self, *command: str, check: bool = True, timeout: float = 30, **options: Any) -> "Result":
        """Run a command inside to its end. Raises CommandError on failure unless `check` is false."""
        result = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=timeout, check=False, **options
        )
        if check and result.returncode != 0:
            said = f"{result.stdout}{result.stderr}"
            if command[0] == "systemctl":
                said += subprocess.run(
                    self.command("journalctl", "--lines=30"), capture_output=True, text=True, check=False
                ).stdout
            raise CommandError(f"{' '.join(command)} ended with {result.returncode}\n{said}")
        return result

    @contextmanager
    def started(self, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A command that runs inside, its standard output in a pipe, killed on leaving when it has not ended."""
        process = subprocess.Popen(self.command(*command), stdout=subprocess.PIPE, start_new_session=True)
        with process:
            try:
                yield process
            finally:
                # nsenter forks into the process namespace, and only the group has both.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def connect(self, port: int, *, seconds: float = 30) -> socket.socket:
        """A connection to a port of the machine's loopback, with `seconds` as its timeout. Raises OSError."""
        with ThreadPoolExecutor(max_workers=1) as visitor:
            return visitor.submit(self._connect, port, seconds).result()

    def _connect(self, port: int, seconds: float) -> socket.socket:
        """On a thread that enters the machine's network and ends there: a socket stays where it was made."""
        with Path(f"/proc/{self.pid}/ns/net").open("rb") as network:
            if _libc.setns(network.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file, and the directories above it."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, input=text)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in text.splitlines())

    def processes(self, unit: str) -> list[int]:
        """The process ids, as the machine sees them, of all processes of a unit."""
        group = self.show(unit, "ControlGroup")["ControlGroup"]
        if not group:
            return []
        paths = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")
        script = (
            f'for d in {" ".join(paths)}; do test -e "$d$1/cgroup.procs" && exec cat "$d$1/cgroup.procs"; done; true'
        )
        return [int(pid) for pid in self.run("sh", "-c", script, "sh", group).stdout.split()]

    def journal(self, unit: str) -> list[Entry]:
        """All entries of and about a unit, the oldest first."""
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "--output=json", "--all", "--quiet", f"--unit={unit}").stdout
        return [json.loads(line) for line in text.splitlines()]

    def wait_for(self, unit: str, wanted: Callable[[Entry], bool], *, seconds: float = 30, after: str = "") -> Entry:
        """The first entry of a unit that is `wanted`; `after` is the cursor of an entry to begin behind.

        Raises AssertionError, with what the journal has, when it does not come within `seconds`.
        """
        place = [f"--after-cursor={after}"] if after else []
        follow = ["journalctl", "--follow", "--lines=all", "--output=json", "--all", f"--unit={unit}", *place]
        deadline = time.monotonic() + seconds
        seen: list[str] = []
        with self.started(*follow) as reader:
            assert reader.stdout is not None
            for line in _lines(reader.stdout.fileno(), deadline):
                entry = json.loads(line)
                if wanted(entry):
                    return entry
                seen.append(message(entry))
        lines = "\n".join(seen)
        raise AssertionError(f"{unit}: no such entry within {seconds} s; the journal has\n{lines}")


Result = subprocess.CompletedProcess[str]


def message(entry: Entry) -> str:
    """The text of a journal entry."""
    text = entry.get("MESSAGE", "")
    return bytes(text).decode("utf-8", "replace") if isinstance(text, list) else str(text)


@contextmanager
def boot(binds: Sequence[tuple[Path, str]] = (), *, seconds: float = 30) -> Iterator[Machine]:
    """A running machine. `binds`: directories or files of the host, and where the machine sees them, to read.

    Raises BootError. On leaving, everything inside is killed and nothing remains on the host.
    """
    groups, unified = _make_groups()
    scratch = Path(tempfile.mkdtemp(prefix="real-systemd-"))
    host = Path(tempfile.mkdtemp(prefix="real-systemd-host-"))
    plan = {
        "owner": os.getpid(),
        "scratch": str(scratch),
        "host": str(host),
        "groups": groups,
        "unified": unified,
        "binds": [(str(source), target) for source, target in binds],
    }
    process: subprocess.Popen[bytes] | None = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (host / "log").open("wb") as log:
            ready.bind(str(host / "notify"))
            process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM), "enter", json.dumps(plan)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            _wait_until_booted(ready, process, time.monotonic() + seconds, host / "log")
        yield Machine(_only_child(process.pid))
    finally:
        if process is not None:
            _end(process)
        for group in groups:
            remove_group(Path(group["path"]))
        shutil.rmtree(host)
        scratch.rmdir()


def _wait_until_booted(ready: socket.socket, process: "subprocess.Popen[bytes]", deadline: float, log: Path) -> None:
    end = os.pidfd_open(process.pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([ready, end], [], [], left)
            if ready in readable and b"READY=1" in ready.recv(4096).split(b"\n"):
                return
            if end in readable:
                raise BootError(f"the machine ended while booting\n{log.read_text()}")
    finally:
        os.close(end)
    raise BootError(f"the machine did not boot in time\n{log.read_text()}")


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill init: its parent `unshare` ends once the kernel has ended everything in init's namespace.

    Before there is an init, the process itself is killed (and takes a child that it may just have made with it).
    """
    try:
        os.kill(_only_child(process.pid), signal.SIGKILL)
    except (IndexError, ProcessLookupError, FileNotFoundError):
        process.kill()
    _reap_adopted()
    process.wait(END_TIMEOUT)


def _reap_adopted() -> None:
    """Reap what nsenter left behind: the test process may be a child subreaper, and a process namespace ends only when
    everything that ever entered it is reaped."""
    ours = f"PPid:\t{os.getpid()}\n"
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            spaces = re.search(r"^NSpid:(.*)$", text, re.MULTILINE)
            if ours in text and spaces is not None and len(spaces[1].split()) > 1:
                os.waitpid(int(status.parent.name), 0)


def _make_groups() -> tuple[list[dict[str, str]], bool]:
    """A control group of our own in every hierarchy of the host; True when there is but the unified one."""
    mounts = re.findall(r"^\S+ (/sys/fs/cgroup\S*) (cgroup2?) (\S+)", Path("/proc/mounts").read_text(), re.MULTILINE)
    name = f"real-systemd-{os.getpid()}-{next(_numbers)}"
    groups = []
    for mountpoint, kind, options in mounts:
        path = Path(mountpoint, name)
        path.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems") if (path / "cpuset.mems").exists() and kind == "cgroup" else ():
            (path / file).write_text((path.parent / file).read_text())
        controllers = ",".join(word for word in options.split(",") if word not in _FLAGS)
        if controllers.startswith("name="):
            controllers = f"none,{controllers}"
        groups.append({"path": str(path), "name": Path(mountpoint).name, "type": kind, "options": controllers})
    unified = [mountpoint for mountpoint, kind, _ in mounts] == ["/sys/fs/cgroup"]
    if unified:
        _enable_controllers(Path("/sys/fs/cgroup"))
    return groups, unified


_FLAGS = ("rw", "ro", "relatime", "nosuid", "nodev", "noexec", "xattr", "clone_children", "noprefix")


def _enable_controllers(root: Path) -> None:
    wanted = {"memory", "pids"} & set((root / "cgroup.controllers").read_text().split())
    for controller in wanted - set((root / "cgroup.subtree_control").read_text().split()):
        (root / "cgroup.subtree_control").write_text(f"+{controller}")


def remove_group(path: Path) -> None:
    """Remove a control group that has no process any more, and all below it."""
    for directory, _, _ in os.walk(path, topdown=False):
        Path(directory).rmdir()


def _lines(descriptor: int, deadline: float) -> Iterator[str]:
    """Lines of a pipe until its end or the deadline."""
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return
        data = os.read(descriptor, 65536)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
