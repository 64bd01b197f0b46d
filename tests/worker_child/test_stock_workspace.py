"""Paths that try to lead out of a workspace."""

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest

from worker_child.errors import NonRetryableError, ValidationError
from worker_child.stock.workspace import Workspace, readable

FIELD = "parameters.path"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace beside a secret, with links of every kind."""
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("s3cret")
    root = tmp_path / "root"
    (root / "dir" / "deep").mkdir(parents=True)
    (root / "file").write_text("in")
    (root / "dir" / "file").write_text("in")
    (root / "to_file").symlink_to("dir/file")
    (root / "to_dir").symlink_to("dir")
    (root / "dir" / "deep" / "up").symlink_to("../../file")
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "absolute_inside").symlink_to(root / "file")
    (root / "relative").symlink_to("../secret")
    (root / "to_outside").symlink_to("../outside")
    (root / "dir" / "far").symlink_to("../../outside")
    (root / "loop").symlink_to("loop")
    (root / "ping").symlink_to("pong")
    (root / "pong").symlink_to("ping")
    (root / "dangling").symlink_to("dir/new")
    (root / "proc").symlink_to("/proc/self/root")
    return root


def content(root: Path, path: str) -> str:
    with Workspace(root).place(path, FIELD) as place:
        descriptor = os.open(place.name or ".", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=place.directory)
        with os.fdopen(descriptor) as file:
            return file.read()


@pytest.mark.parametrize(
    "path",
    [
        "file",
        "./file",
        "dir/../file",
        "dir/deep/../../file",
        "dir//file",
        "to_file",
        "to_dir/file",
        "to_dir/../file",
        "dir/deep/up",
        "to_dir/deep/up",
        "dir/./deep/./up",
    ],
)
def test_what_is_inside_is_found(root: Path, path: str) -> None:
    assert content(root, path) == "in"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../secret",
        "../root/file",
        "dir/../../secret",
        "dir/deep/../../../secret",
        "to_dir/../../secret",
        "/etc/passwd",
        "//etc/passwd",
        "absolute",
        "absolute_inside",
        "relative",
        "to_outside/file",
        "to_dir/far/file",
        "dir/far/file",
        "to_outside/../secret",
        "proc/etc/passwd",
        "loop",
        "ping",
        "loop/file",
        "file\0/../../secret",
        "x" * 5000,
    ],
)
def test_nothing_leads_out(root: Path, path: str) -> None:
    with pytest.raises(ValidationError, match=r"^parameters\.path: "):
        content(root, path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing", "parameters.path: 'nothing': no such file or directory"),
        ("file/x", "parameters.path: 'file/x': not a directory"),
        ("nothing/x", "parameters.path: 'nothing/x': no such file or directory"),
        ("x" * 300, "parameters.path: 'xxx.*': file name too long"),
        ("half \udcff", "no such file or directory"),
    ],
)
def test_what_the_system_says_is_said_of_the_parameter(root: Path, path: str, sentence: str) -> None:
    with pytest.raises(NonRetryableError, match=sentence):
        content(root, path)


def test_half_of_a_character_has_no_path(root: Path) -> None:
    with pytest.raises(ValidationError, match=r"parameters\.path: expected a path in UTF-8"):
        content(root, "\ud83d")


def test_absolute_paths_of_the_workspace_are_its_paths(root: Path, tmp_path: Path) -> None:
    assert content(root, str(root / "file")) == "in"
    assert content(root, f"{root}/to_dir/../file") == "in"
    (tmp_path / "alias").symlink_to(root)
    assert content(tmp_path / "alias", str(root / "file")) == "in"
    assert content(tmp_path / "alias", str(tmp_path / "alias" / "file")) == "in"
    for path in (f"{root}/../secret", f"{root}-other", f"{root}/absolute"):
        with pytest.raises(ValidationError):
            content(root, path)


def test_a_link_that_leads_nowhere_yet_leads_to_a_place_inside(root: Path) -> None:
    with Workspace(root).place("dangling", FIELD) as place:
        assert place.name == "new"
        assert Path(f"/proc/self/fd/{place.directory}").readlink() == root / "dir"


def test_a_link_at_the_end_is_itself_where_it_is_not_followed(root: Path) -> None:
    with Workspace(root).place("relative", FIELD, follow=False) as place:
        status = place.status()
        assert status is not None
        assert stat.S_ISLNK(status.st_mode)


def test_directories_on_the_way_are_made_inside_alone(root: Path, tmp_path: Path) -> None:
    with Workspace(root).place("a/b/c", FIELD, make_parents=True) as place:
        assert (place.name, place.status()) == ("c", None)
    assert (root / "a" / "b").is_dir()
    for path in ("../new/file", "to_outside/new/file", "dir/far/new/file", "relative/x/y"):
        with pytest.raises(NonRetryableError), Workspace(root).place(path, FIELD, make_parents=True):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root", "secret"]
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]


def test_the_workspace_is_made_when_it_is_needed(tmp_path: Path) -> None:
    root = tmp_path / "state" / "workspaces" / "default"
    with Workspace(root).place("x", FIELD) as place:
        assert place.status() is None
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_no_descriptor_stays_open(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("to_dir/deep/up", "loop", "../x", "nothing/x"):
        with contextlib.suppress(NonRetryableError):
            content(root, path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    """Two threads: one exchanges a directory and a link to the outside all the time, the other reads through it."""
    (root / "real").mkdir()
    (root / "real" / "file").write_text("in")
    (root / "link").symlink_to(tmp_path / "outside")
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            (root / "real").rename(root / "spare")
            (root / "link").rename(root / "real")
            (root / "real").rename(root / "link")
            (root / "spare").rename(root / "real")

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    read = set()
    try:
        for _ in range(3000):
            with contextlib.suppress(NonRetryableError):
                read.add(content(root, "real/file"))
    finally:
        stop.set()
        exchanging.join()
    assert read == {"in"}


def test_names_that_are_no_utf_8_can_be_told() -> None:
    assert readable(os.fsdecode(b"a\xff")) == "a\\xff"
    assert readable("grüße") == "grüße"
