"""environment.git.*: clones repositories into the workspace, and says what has changed in one.

Nothing here runs what a repository brings along. A clone has no hooks. Status and diff do not read the repository's own
configuration, which can name programs (filters, monitors, pagers): git is given a directory of ours that has nothing of
it but the index, the commit and the way to the objects.
"""

import asyncio
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from worker_child.actions import Registry
from worker_child.errors import NonRetryableError, RetryableError, ValidationError
from worker_child.stock.environment_commands import Finished, environment, run
from worker_child.stock.workspace import Place, Workspace, open_regular

MAX_OUTPUT = 4 * 1024 * 1024
CLONE_SECONDS = 3600.0
LOOK_SECONDS = 120.0
MAX_INDEX = 512 * 1024 * 1024
MAX_REFERENCE = 4096
MAX_PACKED_REFERENCES = 64 * 1024 * 1024
MAX_EXCLUDE = 1024 * 1024
MAX_REMOTE_OUTPUT = 64 * 1024
MAX_SAID = 2000
"""Characters of what git complains of."""
GITHUB = "https://github.com"

_FULL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")
_URL = re.compile(r"https://[A-Za-z0-9.-]+(:\d{1,5})?(/[A-Za-z0-9_.~+-]+)+/?")
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@#=-]{0,254}")
_BRANCH = re.compile(r"refs/heads/[^\x00-\x20\x7f~^:?*\[\\]{1,255}")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")

Output = Annotated[int, Meta(ge=2, le=MAX_OUTPUT)]


class Clone(Struct, frozen=True):
    """`repo_full_name` is `owner/name` on GitHub, or an https:// URL. `dest` defaults to the repository's name.

    `fetch_ref` (such as `refs/pull/7/head`) or `commit` is checked out, detached, when it is given.
    """

    repo_full_name: str
    dest: str = ""
    branch: str | None = None
    depth: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    commit: str | None = None
    fetch_ref: str | None = None


class Status(Struct, frozen=True):
    """`dir` is the repository's own directory in the workspace."""

    dir: str = ""
    max_output_bytes: Output = 64 * 1024


class Diff(Struct, frozen=True):
    """What is not staged, or with `staged` what is. `context`: lines around each change."""

    dir: str = ""
    staged: bool = False
    context: Annotated[int, Meta(ge=0, le=10_000)] = 3
    max_output_bytes: Output = 256 * 1024


class Git:
    """The handlers."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def clone(self, parameters: Clone) -> dict[str, Any]:
        """Clones into a new directory, which is there only when all of it is."""
        url = _url(parameters.repo_full_name)
        dest = parameters.dest or url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        branch = _reference(parameters.branch, "branch")
        depth = [f"--depth={parameters.depth}"] if parameters.depth else []
        options = ["--template=", "--no-recurse-submodules", *depth, *([f"--branch={branch}"] if branch else [])]
        with self._workspace.place(dest, "parameters.dest", make_parents=True, follow=False) as place:
            _check_free(place, dest)
            temporary = f".clone-{secrets.token_hex(8)}"
            parent = f"/proc/self/fd/{place.directory}"
            try:
                await _remote(["clone", *options, "--", url, temporary], parent)
                await _check_out(parameters, depth, f"{parent}/{temporary}")
                head = await _remote(["rev-parse", "HEAD"], f"{parent}/{temporary}")
                os.rename(temporary, place.name or "", src_dir_fd=place.directory, dst_dir_fd=place.directory)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True, dir_fd=place.directory)
                raise
        return {"path": dest, "url": url, "commit": head.stdout.text().strip()}

    async def status(self, parameters: Status) -> dict[str, Any]:
        """`git status --porcelain`, and whether it is clean."""
        command = ["status", "--porcelain=v1", "--branch", "--untracked-files=all", "--ignore-submodules=all"]
        finished = await self._look(command, parameters.dir, parameters.max_output_bytes)
        result = finished.as_result()
        return result | {"clean": finished.exit_code == 0 and result["stdout"].count("\n") <= 1}

    async def diff(self, parameters: Diff) -> dict[str, Any]:
        """`git diff`, of tracked files."""
        command = ["diff", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all"]
        command += [f"--unified={parameters.context}", *(["--cached"] if parameters.staged else [])]
        finished = await self._look(command, parameters.dir, parameters.max_output_bytes)
        return finished.as_result()

    async def _look(self, arguments: Sequence[str], path: str, max_output: int) -> Finished:
        """A command of git that only looks, with a directory of ours for `.git`."""
        with self._workspace.directory(path, "parameters.dir") as tree, ExitStack() as opened:
            repository = _inside(tree, ".git", f"parameters.dir: {path!r} is not the directory of a repository", opened)
            objects = _inside(repository, "objects", f"parameters.dir: {path!r} has no objects of a repository", opened)
            ours = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="mobius-git-")))
            await asyncio.to_thread(_copy_what_is_harmless, repository, objects, ours)
            own = {
                "GIT_OBJECT_DIRECTORY": f"/proc/self/fd/{objects}",
                "GIT_ALLOW_PROTOCOL": "",
                "GIT_OPTIONAL_LOCKS": "0",
            }
            finished = await run(
                [_git(), "--no-pager", "-c", "core.quotePath=false", f"--git-dir={ours}", "--work-tree=.", *arguments],
                directory=f"/proc/self/fd/{tree}",
                variables=environment(os.environ, _SILENT | _UNCONFIGURED | own),
                seconds=LOOK_SECONDS,
                max_output=max_output,
                # git finds the objects by the number of their directory, not by a name that may lead elsewhere by now.
                pass_fds=[objects],
            )
        if finished.exit_code != 0:
            raise _failed(arguments[0], finished)
        return finished

    def register(self, registry: Registry) -> None:
        """Adds the actions to the registry."""
        registry.action("environment.git.clone")(self.clone)
        registry.action("environment.git.status", idempotent=True)(self.status)
        registry.action("environment.git.diff", idempotent=True)(self.diff)


_SILENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "GIT_EDITOR": "/bin/false",
    "LC_ALL": "C.UTF-8",
}
"""Nobody is there to be asked."""

_UNCONFIGURED = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}


async def _check_out(parameters: Clone, depth: list[str], inside: str) -> None:
    """The commit or the reference that was asked for, if one was."""
    reference, commit = _reference(parameters.fetch_ref, "fetch_ref"), _commit(parameters.commit)
    if reference is None and commit is None:
        return
    there = commit is not None and (await _command(["cat-file", "-e", f"{commit}^{{commit}}"], inside)).exit_code == 0
    if not there:
        await _remote(["fetch", "--no-recurse-submodules", *depth, "--", "origin", reference or commit or ""], inside)
    await _remote(["checkout", "--quiet", "--detach", commit or "FETCH_HEAD", "--"], inside)


async def _remote(arguments: Sequence[str], directory: str) -> Finished:
    """A command of git in a clone of our own. Raises RetryableError when it fails."""
    finished = await _command(arguments, directory)
    if finished.exit_code != 0:
        raise _failed(arguments[0], finished)
    return finished


async def _command(arguments: Sequence[str], directory: str) -> Finished:
    # The user's own configuration is wanted here: it says how private repositories are reached.
    return await run(
        [_git(), "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", *arguments],
        directory=directory,
        variables=environment(os.environ, _SILENT | {"GIT_ALLOW_PROTOCOL": "https"}),
        seconds=CLONE_SECONDS,
        max_output=MAX_REMOTE_OUTPUT,
    )


def _failed(command: str, finished: Finished) -> RetryableError:
    if finished.timed_out:
        return RetryableError(f"git {command}: did not end within {finished.seconds:.0f} s")
    said = _CREDENTIALS.sub("//[credentials]@", finished.stderr.text().strip())
    return RetryableError(f"git {command}: exit code {finished.exit_code}: {said[-MAX_SAID:]}")


def _git() -> str:
    git = shutil.which("git", path=environment(os.environ, {})["PATH"])
    if git is None:
        raise NonRetryableError("there is no git on this worker's PATH")
    return git


# --- parameters ---------------------------------------------------------------------------------------------------


def _url(name: str) -> str:
    """Only https: other protocols of git run programs, or read this machine's files."""
    if _FULL_NAME.fullmatch(name) and not {".", ".."} & set(name.split("/")):
        return f"{GITHUB}/{name}.git"
    if _URL.fullmatch(name) and not {".", ".."} & set(name.split("/")):
        return name
    raise ValidationError(
        f"parameters.repo_full_name: expected `owner/name` of a repository on GitHub, or an https:// URL, got {name!r}"
    )


def _reference(name: str | None, field: str) -> str | None:
    if name is None or name == "":
        return None
    if not _REFERENCE.fullmatch(name) or ".." in name or name.endswith((".lock", "/")):
        raise ValidationError(f"parameters.{field}: expected a name of git, such as `main`, got {name!r}")
    return name


def _commit(name: str | None) -> str | None:
    if name is None or name == "":
        return None
    if not _COMMIT.fullmatch(name):
        raise ValidationError(f"parameters.commit: expected a whole commit id in hexadecimal, got {name!r}")
    return name


def _check_free(place: Place, dest: str) -> None:
    status = place.status()
    empty = status is not None and place.name is not None and stat.S_ISDIR(status.st_mode) and _is_empty(place)
    if place.name is None or (status is not None and not empty):
        raise NonRetryableError(f"parameters.dest: {dest!r} is there already; name another, or delete it first")


def _is_empty(place: Place) -> bool:
    opened = os.open(place.name or "", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place.directory)
    try:
        with os.scandir(opened) as entries:
            return next(entries, None) is None
    finally:
        os.close(opened)


# --- a repository without its configuration -------------------------------------------------------------------------


def _inside(directory: int, name: str, sentence: str, opened: ExitStack) -> int:
    """A directory of this name that is one, and no symlink."""
    try:
        found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise NonRetryableError(sentence) from error
    opened.callback(os.close, found)
    return found


def _copy_what_is_harmless(repository: int, objects: int, ours: Path) -> None:
    """HEAD with its commit, the index, and what is ignored. Raises NonRetryableError."""
    if _content(objects, "info/alternates", MAX_EXCLUDE) is not None:
        raise NonRetryableError("parameters.dir: the repository borrows objects from another place")
    head = (_content(repository, "HEAD", MAX_REFERENCE) or b"").decode("utf-8", "replace").strip()
    branch = head.removeprefix("ref: ")
    commit = _resolved(repository, branch) if branch != head else head
    if not _COMMIT.fullmatch(commit) and (commit or branch == head):
        raise NonRetryableError("parameters.dir: the repository's HEAD is no commit")
    version, extension = ("1", "\n[extensions]\n\tobjectFormat = sha256") if len(commit) == 64 else ("0", "")
    (ours / "config").write_text(f"[core]\n\trepositoryFormatVersion = {version}\n\tbare = false{extension}\n")
    (ours / "objects").mkdir()
    (ours / "refs").mkdir()
    (ours / "info").mkdir()
    (ours / "HEAD").write_text(f"{head}\n")
    if commit and branch != head:
        (ours / branch).parent.mkdir(parents=True, exist_ok=True)
        (ours / branch).write_text(f"{commit}\n")
    for name, limit in (("index", MAX_INDEX), ("info/exclude", MAX_EXCLUDE)):
        content = _content(repository, name, limit)
        if content is not None:
            (ours / name).write_bytes(content)


def _resolved(repository: int, branch: str) -> str:
    """The commit of a branch; empty for one without any. Raises NonRetryableError."""
    if not _BRANCH.fullmatch(branch) or ".." in branch or "/." in branch:
        raise NonRetryableError("parameters.dir: the repository's HEAD is no branch and no commit")
    commit = (_content(repository, branch, MAX_REFERENCE) or b"").decode("ascii", "replace").strip()
    if not commit:
        packed = (_content(repository, "packed-refs", MAX_PACKED_REFERENCES) or b"").decode("utf-8", "replace")
        found = re.search(rf"^([0-9a-f]+) {re.escape(branch)}$", packed, re.MULTILINE)
        commit = found[1] if found else ""
    return commit


def _content(directory: int, path: str, limit: int) -> bytes | None:
    """What a regular file has; None where there is none. No name on the way may be a symlink."""
    *parents, name = path.split("/")
    with ExitStack() as opened:
        try:
            for parent in parents:
                directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                opened.callback(os.close, directory)
            what = f"parameters.dir: {path!r} of the repository"
            file = opened.enter_context(open_regular(directory, name, os.O_RDONLY, what))
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size > limit:
            raise NonRetryableError(f"{what} has more than {limit} bytes")
        return file.read(limit)
