"""The kernel's own figures: both cgroup versions, and a process that takes memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.memory import KillCounter, memory_of

V1 = "4:memory:/unit\n0::/\n"
V2 = "0::/system.slice/unit\n"


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        (V1, "sys/fs/cgroup/memory/unit/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        (V2, "sys/fs/cgroup/system.slice/unit/memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill {}\n"),
    ],
)
def test_the_counter_of_either_version_is_followed(tmp_path: Path, membership: str, file: str, text: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text.format(3))
    counter = KillCounter(tmp_path)
    assert counter.read() == 3
    path.write_text(text.format(4))
    assert counter.read() == 4
    counter.close()
    counter.close()
    assert counter.read() is None


@pytest.mark.parametrize("membership", [None, "0::/\n", "nonsense"])
def test_where_the_kernel_does_not_say_nothing_is_known(tmp_path: Path, membership: str | None) -> None:
    if membership is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
    assert KillCounter(tmp_path).read() is None


def test_what_a_process_takes_is_seen() -> None:
    program = "import sys\nfor size in sys.stdin:\n    block = b'x' * int(size)\n    print('ok', flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        figures = []
        for size in (1, 64 * 1024**2):
            child.stdin.write(f"{size}\n".encode())
            child.stdin.flush()
            child.stdout.readline()
            found = memory_of(child.pid)
            assert found is not None
            figures.append(found)
        child.stdin.close()
    assert 60 * 1024**2 < figures[1].private - figures[0].private < 70 * 1024**2
    assert figures[1].shared_fairly >= figures[1].private
    assert memory_of(child.pid) is None
    assert memory_of(os.getpid()) is not None
