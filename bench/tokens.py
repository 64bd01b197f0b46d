"""What our worker adds to a stream of tokens between a model server and a control plane.

`python -m bench.tokens [--tokens 10000] [--interval 0.001]`: one generation over HTTP and the worker socket, with the
journal on, once with a control plane that acknowledges deltas and once with one that never does. In the middle the
worker's connection is cut, once. The time is that from the model server's write of a token to its arrival in a delta;
it includes two passages through the kernel and a Python program at either end. CPU is that of the process that streams,
its start included.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


def measure(tokens: int, interval: float, *, acknowledge: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.token_server", "--tokens", str(tokens), "--interval", str(interval)]
    source = subprocess.Popen(command + ["--acknowledge"] * acknowledge, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    with tempfile.TemporaryDirectory() as state:
        url, models = (f"http://127.0.0.1:{source.stdout.readline().strip()}" for _ in range(2))
        environment = os.environ | {"MOBIUS_API_URL": url, "MOBIUS_API_KEY": "mbx_" + "b" * 32, "XDG_STATE_HOME": state}
        flags = ["--instance-id", "bench", "--provider", f"lab=openai+{models}/v1", "--models", "lab/m"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "mobius_cli", "worker", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            figures: dict[str, Any] = json.loads(source.stdout.readline())
            family = psutil.Process(worker.pid).children(recursive=True)
            # Of the processes of a worker, the one that streams is the one that used most.
            used = max((sum(member.cpu_times()[:2]) for member in family), default=0.0)
            figures["CPU us/token"] = 1e6 * used / tokens
        finally:
            worker.terminate()
            worker.wait(30)
            source.kill()
            source.wait()
    return figures


def main() -> None:
    """Measure both control planes and print their figures side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=0.001, help="seconds between two tokens")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, CPython {platform.python_version()}")
    print(f"{arguments.tokens} tokens, one every {arguments.interval * 1e3:g} ms; the connection is cut once\n")
    columns = {
        name: measure(arguments.tokens, arguments.interval, acknowledge=acknowledge)
        for name, acknowledge in (("acknowledges", True), ("never does", False))
    }
    print(f"{'':22}" + "".join(f"{name:>14}" for name in columns))
    for figure in columns["acknowledges"]:
        values = [column[figure] for column in columns.values()]
        shown = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        print(f"{figure:22}" + "".join(f"{value:>14}" for value in shown))


if __name__ == "__main__":
    main()
