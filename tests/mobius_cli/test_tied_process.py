import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

TIED = [sys.executable, "-m", "mobius_cli.tied_process"]

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([*sys.argv[1:3], "mobius_cli.tied_process", str(os.getpid()), *sys.argv[3:]])
print(child.pid, flush=True)
child.wait()
"""

TELLS = "import os, signal; print(os.getpid(), flush=True); signal.pause()"


def test_it_becomes_the_program_and_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, sys.executable, "-m", sys.executable, "-c", TELLS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # The program speaks itself: from here on it is no longer the starter.
        assert int(parent.stdout.readline()) == pid
        child = psutil.Process(pid)
        assert child.cmdline() == [sys.executable, "-c", TELLS]
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert alive == []


def test_a_parent_that_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    done = subprocess.run([*TIED, "1", "/usr/bin/touch", str(touched)], check=False, timeout=20)
    assert done.returncode == 70
    assert not touched.exists()


def test_signals_reach_the_program_itself() -> None:
    program = [*TIED, str(os.getpid()), sys.executable, "-c", TELLS]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.terminate()
    assert process.returncode == -signal.SIGTERM
