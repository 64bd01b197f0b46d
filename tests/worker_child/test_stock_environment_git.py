"""Clones from a real server over https; repositories that would like to run something."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.git_server import GitServer, git, git_server
from tests.support.stock import DEADLINE, Environment, environment_actions

CLONE, STATUS, DIFF = (f"environment.git.{name}" for name in ("clone", "status", "diff"))


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GitServer]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    async with git_server(tmp_path / "server") as made:
        made.configure(home)
        yield made


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Environment]:
    (tmp_path / "root").mkdir()
    async with environment_actions(tmp_path / "root") as made:
        yield made


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- clone ------------------------------------------------------------------------------------------------------------


async def test_a_repository_is_cloned(server: GitServer, worker: Environment) -> None:
    commit = server.repository("owner/name").commit({"file": "content", "dir/other": "more"})
    result = await worker.run(CLONE, repo_full_name="owner/name")
    assert result == {"path": "name", "url": "https://github.com/owner/name.git", "commit": commit}
    assert (worker.root / "name" / "dir" / "other").read_text() == "more"
    assert names(worker.root) == {"name"}


async def test_a_url_a_place_a_branch_and_a_depth(server: GitServer, worker: Environment) -> None:
    repository = server.repository("owner/name")
    repository.commit({"file": "1"})
    repository.commit({"file": "2"})
    commit = repository.commit({"file": "3"}, branch="feature/x")
    repository.commit({"file": "4"}, branch="other")
    (worker.root / "deep").mkdir()
    result = await worker.run(
        CLONE, repo_full_name=f"{server.url}/owner/name.git", dest="deep/er/here", branch="feature/x", depth=1
    )
    assert result["commit"] == commit
    clone = worker.root / "deep" / "er" / "here"
    assert (clone / "file").read_text() == "3"
    assert git(clone, "rev-list", "--count", "HEAD") == "1"


async def test_a_commit_and_a_reference_are_checked_out(server: GitServer, worker: Environment) -> None:
    repository = server.repository("owner/name")
    first = repository.commit({"file": "1"})
    repository.commit({"file": "2"})
    pull = repository.commit({"file": "pull"}, branch="gone")
    repository.reference("refs/pull/7/head", pull)
    for number, (wanted, commit) in enumerate(
        [
            ({"commit": first}, first),
            ({"commit": first, "depth": 1}, first),
            ({"fetch_ref": "refs/pull/7/head"}, pull),
            ({"fetch_ref": "refs/pull/7/head", "depth": 1}, pull),
            ({"fetch_ref": "refs/pull/7/head", "commit": pull}, pull),
        ]
    ):
        result = await worker.run(CLONE, repo_full_name="owner/name", dest=f"d{number}", **wanted)
        assert result["commit"] == commit
        assert git(worker.root / f"d{number}", "rev-parse", "HEAD") == commit


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "a/b/c",
        "--upload-pack=touch pwned",
        "-oProxyCommand=touch pwned/x",
        "ext::sh -c 'touch pwned'",
        "file:///etc",
        "/etc",
        "../other",
        "./x",
        "owner/..",
        "git@github.com:owner/name",
        "ssh://git@github.com/owner/name",
        "git://github.com/owner/name",
        "http://github.com/owner/name",
        "https://user:password@github.com/owner/name",
        "https://github.com/../../x",
        "https://github.com/owner/name?x=1",
        "https://github.com/own er/name",
        "https://github.com/owner/name\n--config=x",
        "https://-oProxyCommand=x/owner/name",
    ],
)
async def test_what_is_no_repository_is_never_given_to_git(worker: Environment, name: str) -> None:
    kind, message = await worker.fails(CLONE, repo_full_name=name)
    assert kind == "ValidationError"
    assert message.startswith("parameters.repo_full_name: expected `owner/name`")
    assert names(worker.root) == set()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"branch": "--upload-pack=x"}, "branch"),
        ({"branch": "-b"}, "branch"),
        ({"branch": "a..b"}, "branch"),
        ({"branch": "a b"}, "branch"),
        ({"fetch_ref": "--upload-pack=touch pwned"}, "fetch_ref"),
        ({"fetch_ref": "+refs/heads/*:refs/heads/*"}, "fetch_ref"),
        ({"commit": "--help"}, "commit"),
        ({"commit": "HEAD"}, "commit"),
        ({"commit": "abc123"}, "commit"),
        ({"depth": -1}, "depth"),
        ({"depth": "1 --config=x"}, "depth"),
        ({"dest": "../out"}, "dest"),
        ({"dest": "/tmp/out"}, "dest"),
        ({"dest": "."}, "dest"),
        ({"dest": "taken"}, "dest"),
        ({"dest": "link/x"}, "dest"),
    ],
)
async def test_what_is_no_option_of_ours_is_none_of_gits(
    server: GitServer, worker: Environment, parameters: dict[str, object], field: str
) -> None:
    server.repository("owner/name").commit({"file": "1"})
    (worker.root / "taken").mkdir()
    (worker.root / "taken" / "file").write_text("")
    (worker.root / "link").symlink_to(worker.root.parent)
    before = names(worker.root.parent)
    _, message = await worker.fails(CLONE, repo_full_name="owner/name", **parameters)
    assert message.startswith(f"parameters.{field}: ")
    assert names(worker.root) == {"taken", "link"}
    assert names(worker.root.parent) == before


async def test_a_dest_that_begins_like_an_option_is_a_place(server: GitServer, worker: Environment) -> None:
    server.repository("owner/name").commit({"file": "1"})
    await worker.run(CLONE, repo_full_name="owner/name", dest="--config=x")
    assert (worker.root / "--config=x" / "file").exists()


async def test_an_empty_directory_is_free(server: GitServer, worker: Environment) -> None:
    server.repository("owner/name").commit({"file": "1"})
    (worker.root / "name").mkdir()
    await worker.run(CLONE, repo_full_name="owner/name")
    assert (worker.root / "name" / "file").exists()


async def test_nobody_is_asked_for_a_password(server: GitServer, worker: Environment) -> None:
    server.status = 401
    kind, message = await worker.fails(CLONE, repo_full_name="owner/private")
    assert kind == "RetryableError"
    assert message.startswith("git clone: exit code 128: ")
    assert names(worker.root) == set()


async def test_what_is_not_there_says_so_and_leaves_nothing(server: GitServer, worker: Environment) -> None:
    server.repository("owner/name").commit({"file": "1"})
    for parameters in (
        {"repo_full_name": "owner/nothing"},
        {"repo_full_name": "owner/name", "branch": "nothing"},
        {"repo_full_name": "owner/name", "fetch_ref": "refs/pull/9/head"},
        {"repo_full_name": "owner/name", "commit": "0" * 39 + "1"},
    ):
        kind, _ = await worker.fails(CLONE, **parameters)
        assert kind == "RetryableError"
        assert names(worker.root) == set()


async def test_a_cancel_ends_git_and_leaves_nothing(server: GitServer, worker: Environment) -> None:
    server.repository("owner/name").commit({"file": "1"})
    server.hold = asyncio.Event()
    ending = worker.start(CLONE, repo_full_name="owner/name")
    async with asyncio.timeout(DEADLINE):
        await server.asked.wait()
        worker.cancel()
        assert (await ending).status == "cancelled"
    assert names(worker.root) == set()
    server.hold.set()


async def test_no_error_repeats_a_credential(server: GitServer, worker: Environment, tmp_path: Path) -> None:
    with (tmp_path / "home" / ".gitconfig").open("a") as file:
        file.write('[url "https://user:s3cret@127.0.0.1:1/"]\ninsteadOf = https://example.com/\n')
    _, message = await worker.fails(CLONE, repo_full_name="https://example.com/owner/name")
    assert "s3cret" not in message
    assert "127.0.0.1" in message


async def test_a_clone_has_no_hooks(server: GitServer, worker: Environment, tmp_path: Path) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    (hooks / "post-checkout").chmod(0o755)
    with (tmp_path / "home" / ".gitconfig").open("a") as file:
        file.write(f"[init]\ntemplateDir = {tmp_path / 'template'}\n[core]\nhooksPath = {hooks}\n")
    commit = server.repository("owner/name").commit({"file": "1"})
    await worker.run(CLONE, repo_full_name="owner/name", commit=commit)
    assert not (tmp_path / "pwned").exists()


# --- status and diff --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(worker: Environment) -> Path:
    """A repository in the workspace, with one change that is staged, one that is not, and a new file."""
    tree = worker.root / "repo"
    tree.mkdir()
    git(tree, "init", "--quiet", "--initial-branch=main")
    for name in ("staged", "changed", "same"):
        (tree / name).write_text(f"{name}\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first")
    (tree / "staged").write_text("staged!\n")
    git(tree, "add", "staged")
    (tree / "changed").write_text("changed!\n")
    (tree / "grüße").write_text("")
    return tree


async def test_what_has_changed(worker: Environment, tree: Path) -> None:
    status = await worker.run(STATUS, dir="repo")
    assert status["stdout"] == "## main\n M changed\nM  staged\n?? grüße\n"
    assert (status["clean"], status["exit_code"]) == (False, 0)
    diff = (await worker.run(DIFF, dir="repo"))["stdout"]
    assert "-changed\n+changed!\n" in diff
    assert "staged" not in diff
    staged = (await worker.run(DIFF, dir="repo", staged=True, context=0))["stdout"]
    assert "-staged\n+staged!\n" in staged
    assert "changed" not in staged


async def test_looking_changes_nothing(worker: Environment, tree: Path) -> None:
    before = {path: path.read_bytes() for path in (tree / ".git").rglob("*") if path.is_file()}
    await worker.run(STATUS, dir="repo")
    await worker.run(DIFF, dir="repo")
    assert before == {path: path.read_bytes() for path in (tree / ".git").rglob("*") if path.is_file()}


async def test_a_clean_repository_of_any_kind(worker: Environment) -> None:
    for name, options in (("plain", []), ("sha256", ["--object-format=sha256"])):
        tree = worker.root / name
        tree.mkdir()
        git(tree, "init", "--quiet", "--initial-branch=feature/x", *options)
        assert (await worker.run(STATUS, dir=name))["stdout"] == "## No commits yet on feature/x\n"
        (tree / "file").write_text("x")
        (tree / ".gitignore").write_text("*.o\n")
        (tree / ".git" / "info" / "exclude").write_text("*.tmp\n")
        git(tree, "add", ".")
        git(tree, "commit", "--quiet", "--message", "first")
        (tree / "x.o").write_text("")
        (tree / "x.tmp").write_text("")
        for command in ([], ["pack-refs", "--all"], ["checkout", "--quiet", "--detach"]):
            if command:
                git(tree, *command)
            status = await worker.run(STATUS, dir=name)
            assert status["clean"] is True
            assert (await worker.run(DIFF, dir=name, staged=True))["stdout"] == ""


async def test_a_large_diff_is_cut_in_the_middle(worker: Environment, tree: Path) -> None:
    (tree / "changed").write_text("".join(f"{number}\n" for number in range(100_000)))
    diff = await worker.run(DIFF, dir="repo", max_output_bytes=2000)
    assert diff["truncated"] is True
    assert "bytes omitted" in diff["stdout"]
    assert len(diff["stdout"]) < 2200


EVIL = """
[core]
    repositoryFormatVersion = 0
    fsmonitor = "touch {0}/fsmonitor; false"
    pager = "touch {0}/pager"
    hooksPath = {0}/hooks
    sshCommand = "touch {0}/ssh"
    worktree = /
    attributesFile = {0}/attributes
    editor = "touch {0}/editor"
[diff]
    external = "touch {0}/external"
[diff "evil"]
    command = "touch {0}/command"
    textconv = "touch {0}/textconv; cat"
[filter "evil"]
    clean = "touch {0}/clean; cat"
    smudge = "touch {0}/smudge; cat"
    process = "touch {0}/process"
    required = true
[alias]
    status = "!touch {0}/alias"
[include]
    path = {0}/included
[gpg]
    program = "touch {0}/gpg"
[extensions]
    partialClone = origin
[remote "origin"]
    url = "ext::sh -c 'touch {0}/ext'"
    promisor = true
    uploadpack = "touch {0}/uploadpack"
"""


async def test_nothing_that_a_repository_brings_is_run(worker: Environment, tree: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    (evidence / "hooks").mkdir(parents=True)
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        for hooks in (evidence / "hooks", tree / ".git" / "hooks"):
            (hooks / name).write_text(f"#!/bin/sh\ntouch {evidence}/{name}\n")
            (hooks / name).chmod(0o755)
    (evidence / "included").write_text(f'[diff]\nexternal = "touch {evidence}/included-external"\n')
    (evidence / "attributes").write_text("* filter=evil diff=evil\n")
    (tree / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (tree / ".git" / "config").write_text(EVIL.format(evidence))
    (tree / ".git" / "config.worktree").write_text(EVIL.format(evidence))
    # A size that git must read the file for, to know whether it has changed.
    (tree / "same").write_text("sbme\n")
    # An object that is missing, which a promisor would be asked for.
    blob = git(tree.parent, "hash-object", str(tree / "changed"))
    assert blob
    status = await worker.run(STATUS, dir="repo")
    assert " M same" in status["stdout"]
    await worker.run(DIFF, dir="repo")
    await worker.run(DIFF, dir="repo", staged=True)
    assert names(evidence) == {"hooks", "included", "attributes"}


async def test_the_same_repository_does_run_things_when_git_is_asked_directly(
    worker: Environment, tree: Path, tmp_path: Path
) -> None:
    """Else the test above would prove nothing."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (tree / ".git" / "config").write_text(EVIL.format(evidence).replace("worktree = /", ""))
    (tree / ".gitattributes").write_text("* filter=evil diff=evil\n")
    await asyncio.to_thread(
        subprocess.run, ["git", "status"], cwd=tree, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert names(evidence)


async def test_a_submodule_is_not_gone_into(worker: Environment, tree: Path, tmp_path: Path) -> None:
    inner = tree / "inner"
    inner.mkdir()
    git(inner, "init", "--quiet", "--initial-branch=main")
    (inner / "file").write_text("x")
    git(inner, "add", ".")
    git(inner, "commit", "--quiet", "--message", "first")
    git(tree, "add", "inner")
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (inner / ".git" / "config").write_text(EVIL.format(evidence))
    (inner / "file").write_text("y")
    await worker.run(STATUS, dir="repo")
    await worker.run(DIFF, dir="repo")
    assert names(evidence) == set()


async def test_a_file_that_became_a_link_shows_where_it_leads_and_nothing_of_that(
    worker: Environment, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "changed").write_text("s3cret\n")
    (tree / "same").unlink()
    (tree / "same").symlink_to(tmp_path / "secret")
    (tree / "link").symlink_to(tmp_path / "secrets")
    diff = await worker.run(DIFF, dir="repo")
    assert "s3cret" not in diff["stdout"]
    assert f"+{tmp_path / 'secret'}" in diff["stdout"]
    assert "link/changed" not in (await worker.run(STATUS, dir="repo"))["stdout"]


async def test_what_leads_elsewhere_is_no_repository(worker: Environment, tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (tree / ".git").rename(outside)
    for make in (
        lambda place: place.symlink_to(outside),
        lambda place: place.write_text(f"gitdir: {outside}\n"),
        lambda place: place.mkdir(),
    ):
        make(tree / ".git")
        kind, message = await worker.fails(STATUS, dir="repo")
        assert kind == "NonRetryableError"
        assert message.startswith("parameters.dir: ")
        (tree / ".git").rmdir() if (tree / ".git").is_dir() and not (tree / ".git").is_symlink() else (
            tree / ".git"
        ).unlink()


@pytest.mark.parametrize("name", ["objects", "HEAD", "index", "refs/heads/main", "info/exclude", "packed-refs"])
async def test_no_part_of_a_repository_is_read_through_a_link(
    worker: Environment, tree: Path, tmp_path: Path, name: str
) -> None:
    if name == "packed-refs":
        git(tree, "pack-refs", "--all")
    outside = tmp_path / "outside"
    (tree / ".git" / name).rename(outside)
    (tree / ".git" / name).symlink_to(outside)
    kind, message = await worker.fails(STATUS, dir="repo")
    assert kind == "NonRetryableError"
    assert message.startswith("parameters.dir: ")


@pytest.mark.parametrize(
    "head",
    [
        "ref: ../../../../etc/passwd",
        "ref: refs/heads/../../config",
        "ref: refs/heads/.x",
        "ref: config",
        "nonsense",
        "",
    ],
)
async def test_a_head_that_is_none(worker: Environment, tree: Path, head: str) -> None:
    (tree / ".git" / "HEAD").write_text(f"{head}\n")
    kind, message = await worker.fails(STATUS, dir="repo")
    assert kind == "NonRetryableError"
    assert message.startswith("parameters.dir: ")


async def test_borrowed_objects_are_refused(worker: Environment, tree: Path, tmp_path: Path) -> None:
    (tree / ".git" / "objects" / "info").mkdir(exist_ok=True)
    (tree / ".git" / "objects" / "info" / "alternates").write_text(f"{tmp_path}\n")
    _, message = await worker.fails(STATUS, dir="repo")
    assert message == "parameters.dir: the repository borrows objects from another place"


@pytest.mark.parametrize("directory", ["..", "/", "nothing", "repo/staged", "repo/.git"])
async def test_only_directories_of_repositories_are_looked_at(worker: Environment, tree: Path, directory: str) -> None:
    for action in (STATUS, DIFF):
        _, message = await worker.fails(action, dir=directory)
        assert message.startswith("parameters.dir: ")


async def test_without_git_it_says_so(
    server: GitServer, worker: Environment, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for action, parameters in ((STATUS, {"dir": "repo"}), (CLONE, {"repo_full_name": "a/b"})):
        said = await worker.fails(action, **parameters)
        assert said == ("NonRetryableError", "there is no git on this worker's PATH")
