"""Tries what handlers might do, under the settings of a unit, and prints what became of each: a program, not a test."""

import ctypes
import json
import mmap
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def executable_memory() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def change_owner() -> None:
    os.chown(own_file(), os.getuid(), os.getgid())


def setgid_bit() -> None:
    Path(tempfile.mkdtemp()).chmod(0o2700)


def processor_affinity() -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def network_interfaces() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def build_a_sandbox() -> None:
    """A mount in namespaces of its own, in a process of its own."""
    child = os.fork()
    if child == 0:
        failed = _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) or _libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
        os._exit(ctypes.get_errno() if failed else 0)
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, os.strerror(code))


def read_home_directories() -> None:
    list(Path("/home").iterdir())


def write_elsewhere() -> None:
    Path("/opt/elsewhere").write_text("")


def write_home() -> None:
    Path.home().joinpath("file").write_text("")


def write_temporary_files() -> None:
    own_file()


def write_shared_memory() -> None:
    Path("/dev/shm/file").write_text("")


def reach_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def start_programs() -> None:
    code = os.waitstatus_to_exitcode(os.system("true"))
    if code:
        raise OSError(code, "sh")


def see_other_users_processes() -> None:
    Path("/proc/1").stat()


def kernel_facts() -> None:
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/meminfo", "/proc/stat"):
        Path(name).read_text()


def open_a_gpu() -> None:
    os.close(os.open("/dev/kfd", os.O_RDWR))


def own_file() -> str:
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    return path


PROBES: tuple[Callable[[], None], ...] = (
    executable_memory,
    change_owner,
    setgid_bit,
    processor_affinity,
    network_interfaces,
    build_a_sandbox,
    read_home_directories,
    write_elsewhere,
    write_home,
    write_temporary_files,
    write_shared_memory,
    reach_the_network,
    start_programs,
    see_other_users_processes,
    kernel_facts,
    open_a_gpu,
)


def outcome(probe: Callable[[], None]) -> str:
    try:
        probe()
    except OSError as error:
        return error.strerror or str(error)
    return "works"


if __name__ == "__main__":
    print("probed", json.dumps({probe.__name__: outcome(probe) for probe in PROBES}), flush=True)  # noqa: T201
