"""environment.bash: runs a shell command in the workspace."""

import os
import shutil
from typing import Annotated, Any

from msgspec import Meta, Struct

from worker_child.actions import Registry
from worker_child.errors import NonRetryableError, ValidationError
from worker_child.stock.environment_commands import environment, run
from worker_child.stock.workspace import Workspace

MAX_OUTPUT = 4 * 1024 * 1024
MAX_SECONDS = 86400.0
MOST_VARIABLES = 1000


class Bash(Struct, frozen=True):
    """`dir` is relative to the workspace. `max_output_bytes` bounds each of stdout and stderr."""

    command: Annotated[str, Meta(min_length=1)]
    dir: str = ""
    env: Annotated[dict[str, str], Meta(max_length=MOST_VARIABLES)] = {}
    timeout_seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = 300.0
    max_output_bytes: Annotated[int, Meta(ge=2, le=MAX_OUTPUT)] = 64 * 1024


class Shell:
    """The handler."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def bash(self, parameters: Bash) -> dict[str, Any]:
        """Runs the command to its end. What it exits with is part of the result, and no failure of the job."""
        if "\0" in parameters.command:
            raise ValidationError("parameters.command: expected a text without a null character")
        variables = environment(os.environ, _checked(parameters.env))
        bash = shutil.which("bash", path=variables["PATH"])
        if bash is None:
            raise NonRetryableError("there is no bash on this worker's PATH")
        with self._workspace.directory(parameters.dir, "parameters.dir") as directory:
            finished = await run(
                [bash, "--noprofile", "--norc", "-c", parameters.command],
                directory=f"/proc/self/fd/{directory}",
                variables=variables,
                seconds=parameters.timeout_seconds,
                max_output=parameters.max_output_bytes,
            )
        return finished.as_result()

    def register(self, registry: Registry) -> None:
        """Adds the action to the registry."""
        registry.action("environment.bash")(self.bash)


def _checked(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValidationError(f"parameters.env: {name!r} cannot be a variable, or its value has a null character")
    return variables
