"""Becomes a systemd: this program is exec'ed twice by tests.support.real_systemd, never imported.

`enter` runs outside: joins the control groups that were made for the machine, ties its life to its parent's, and
turns into `unshare`, which starts `boot` as PID 1 of new namespaces. `boot` builds a root file system (an overlay of
the present one, all writes in memory), pivots into it and turns into systemd.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import uuid
from pathlib import Path

PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

UNIT_DIRECTORY = Path("/usr/lib/systemd/system")
GENERATORS = Path("/usr/lib/systemd/system-generators")

UNITS = (
    "basic.target",
    "emergency.target",
    "exit.target",
    "final.target",
    "local-fs.target",
    "local-fs-pre.target",
    "multi-user.target",
    "network.target",
    "network-online.target",
    "network-pre.target",
    "paths.target",
    "poweroff.target",
    "remote-fs.target",
    "rescue.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-poweroff.service",
    "timers.target",
    "umount.target",
)
"""The units of the distribution that the machine knows. What else is installed on the host does not start here."""

JOURNALD_CONFIGURATION = "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\n"

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def enter(plan: dict) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != plan["owner"]:
        sys.exit("the test that wanted a machine is gone")
    for group in plan["groups"]:
        Path(group["path"], "cgroup.procs").write_text(str(os.getpid()))
    flags = ["--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--kill-child=KILL"]
    own = [sys.executable, "-I", __file__, "boot", json.dumps(plan)]
    os.execvp("unshare", ["unshare", *flags, "--propagation", "private", "--", *own])


def boot(plan: dict) -> None:
    root = _root_file_system(Path(plan["scratch"]))
    _kernel_file_systems(root)
    _devices(root / "dev")
    _control_groups(root / "sys/fs/cgroup", plan)
    _units(root)
    for source, target in [(plan["host"], "/run/host"), *plan["binds"]]:
        _bind(Path(source), root / target.lstrip("/"))
    _loopback_up()
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    subprocess.run(["umount", "--lazy", "."], check=True)
    os.chdir("/")
    # systemd mounts a service's credentials in a child process: they reach the machine only when mounts are shared.
    mount("--make-rshared", "/")
    environment = {
        "container": "other",
        "NOTIFY_SOCKET": "/run/host/notify",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE": "1",
    }
    os.execve(
        "/usr/lib/systemd/systemd",
        ["systemd", "--system", "--unit=multi-user.target", "--log-target=journal", "--show-status=no"],
        environment,
    )


def _root_file_system(scratch: Path) -> Path:
    mount("-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", scratch)
    upper, work, root = scratch / "upper", scratch / "work", scratch / "root"
    for directory in (upper, work, root):
        directory.mkdir(mode=0o755)
    mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay", root)
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    (root / "etc/hostname").write_text("machine\n")
    return root


def _kernel_file_systems(root: Path) -> None:
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "run")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "tmp")


def _devices(target: Path) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", target)
    for name in DEVICES:
        (target / name).touch()
        mount("--bind", f"/dev/{name}", target / name)
    for name in ("pts", "shm"):
        (target / name).mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=666,mode=620", "devpts", target / "pts")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", target / "shm")
    for name, path in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1")):
        (target / name).symlink_to(path)


def _control_groups(target: Path, plan: dict) -> None:
    """The same hierarchies that the host has; the cgroup namespace shows only the machine's part of each."""
    if plan["unified"]:
        mount("-t", "cgroup2", "cgroup2", target)
        return
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", target)
    for group in plan["groups"]:
        own = target / group["name"]
        own.mkdir()
        if group["type"] == "cgroup2":
            mount("-t", "cgroup2", "cgroup2", own)
        else:
            mount("-t", "cgroup", "-o", group["options"], "cgroup", own)
        for alias in group["name"].split(",") if "," in group["name"] else ():
            (target / alias).symlink_to(group["name"])


def _units(root: Path) -> None:
    units = root / str(UNIT_DIRECTORY).lstrip("/")
    present = {name: (UNIT_DIRECTORY / name).read_bytes() for name in UNITS if (UNIT_DIRECTORY / name).exists()}
    for directory in (units, root / str(GENERATORS).lstrip("/"), root / "etc/systemd/system"):
        directory.mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
    for name, content in present.items():
        (units / name).write_bytes(content)
    wanted = units / "sysinit.target.wants"
    wanted.mkdir()
    (wanted / "systemd-journald.service").symlink_to("../systemd-journald.service")
    drop_in = root / "run/systemd/journald.conf.d/machine.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(JOURNALD_CONFIGURATION)
    shutil.rmtree(root / "etc/systemd/journald.conf.d", ignore_errors=True)


def _bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", source, target)
    mount("-o", "remount,bind,ro", target)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        fcntl.ioctl(datagram, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


if __name__ == "__main__":
    {"enter": enter, "boot": boot}[sys.argv[1]](json.loads(sys.argv[2]))
