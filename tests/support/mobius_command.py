"""The real `mobius` command as a process, pointed at a control plane.

command = MobiusCommand(plane.url, plane.key, home)
done = command.run("runs", "list", "--output", "json")      # waits; stdout, stderr, returncode
with command.start("worker", "--queues", "default") as process: ...
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOBIUS = str(Path(sys.executable).with_name("mobius"))
TIMEOUT = 60.0


class MobiusCommand:
    """`home` is where the command may keep state. Only what is said here is in its environment."""

    def __init__(self, url: str, key: str, home: Path) -> None:
        self.environment = {
            "MOBIUS_API_URL": url,
            "MOBIUS_API_KEY": key,
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
        }

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. `env` is laid over the environment; an empty value takes the variable away."""
        return subprocess.run(
            [MOBIUS, *arguments],
            env=self._environment(env),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """The answer of a command that must succeed, with --output json."""
        done = self.run(*arguments, "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """Start in a session of its own; SIGTERM at the end of the block, if it runs then, and SIGKILL if need be."""
        with subprocess.Popen(
            [MOBIUS, *arguments],
            env=self._environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=TIMEOUT)
                except (subprocess.TimeoutExpired, ValueError):
                    process.kill()

    def _environment(self, env: dict[str, str] | None) -> dict[str, str]:
        return {name: value for name, value in (self.environment | (env or {})).items() if value}
