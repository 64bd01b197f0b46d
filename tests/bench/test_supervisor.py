"""The measurement of the supervisor runs to its end, with both ways of starting a child."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_figure_is_printed():
    command = [sys.executable, "-m", "bench.supervisor", "--children=2", "--kills=4", "--starts=1", "--idle=0.5"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    for figure in (
        "2 children, start to all registered",
        "idle registered child of 2, PSS",
        "SIGKILL of a child to its replacement registered",
        "2 children by exec, start to all registered",
        "SIGKILL of a child to its replacement by exec registered",
    ):
        assert figure in ended.stdout
