"""The environment actions: shell, files, git and logs of one workspace. Only for pools that ask for them."""

from pathlib import Path

from worker_child.actions import Registry
from worker_child.stock.environment_bash import Shell
from worker_child.stock.environment_files import Files
from worker_child.stock.environment_git import Git
from worker_child.stock.environment_logs import Logs
from worker_child.stock.workspace import Workspace


def register(registry: Registry, root: Path) -> None:
    """Adds all of them, with `root` as the directory that they work in."""
    workspace = Workspace(root)
    for actions in (Shell(workspace), Files(workspace), Git(workspace), Logs(workspace)):
        actions.register(registry)
