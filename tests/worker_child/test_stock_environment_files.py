import base64
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.stock import Environment, environment_actions
from worker_child.actions import Registry
from worker_child.stock.environment import register

READ, WRITE, LIST, DELETE = (f"environment.files.{name}" for name in ("read", "write", "list", "delete"))


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Environment]:
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "root").mkdir()
    async with environment_actions(tmp_path / "root") as made:
        yield made


async def test_what_was_written_is_read(files: Environment) -> None:
    assert await files.run(WRITE, path="a/b.txt", content="grüße\n") == {"path": "a/b.txt", "bytes_written": 8}
    assert await files.run(READ, path="a/b.txt") == {
        "path": "a/b.txt",
        "encoding": "utf-8",
        "content": "grüße\n",
        "size": 8,
        "truncated": False,
    }


async def test_a_file_is_replaced_as_a_whole_and_keeps_its_mode(files: Environment) -> None:
    path = files.root / "run.sh"
    await files.run(WRITE, path="run.sh", content="long old content", mode="0750")
    before = path.stat().st_ino
    await files.run(WRITE, path="run.sh", content="new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert path.stat().st_ino != before
    assert [entry.name for entry in files.root.iterdir()] == ["run.sh"]


async def test_appending_keeps_the_file(files: Environment) -> None:
    for word in ("one ", "two"):
        await files.run(WRITE, path="log", content=word, append=True)
    before = (files.root / "log").stat().st_ino
    await files.run(WRITE, path="log", content="!", append=True, mode="600")
    assert (files.root / "log").read_text() == "one two!"
    status = (files.root / "log").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (before, 0o600)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_a_text_can_be_read_in_parts_that_cut_no_character(files: Environment, size: int) -> None:
    text = "grüße, 世界 👋🏽"
    (files.root / "text").write_text(text)
    read, offset = "", 0
    while True:
        part = await files.run(READ, path="text", offset=offset, max_bytes=max(size, 4))
        read += part["content"]
        if not part["truncated"]:
            break
        assert part["next_offset"] > offset
        offset = part["next_offset"]
    assert read == text


async def test_bytes_are_read_as_base64(files: Environment) -> None:
    data = bytes(range(256))
    (files.root / "data").write_bytes(data)
    part = await files.run(READ, path="data", encoding="base64", offset=10, max_bytes=20)
    assert base64.b64decode(part["content"]) == data[10:30]
    assert (part["truncated"], part["next_offset"], part["size"]) == (True, 30, 256)
    kind, message = await files.fails(READ, path="data")
    assert kind == "NonRetryableError"
    assert message == "parameters.path: 'data' is not UTF-8 at byte 128; set parameters.encoding to \"base64\""


async def test_behind_the_end_there_is_nothing(files: Environment) -> None:
    (files.root / "short").write_text("x")
    part = await files.run(READ, path="short", offset=10**15)
    assert (part["content"], part["truncated"]) == ("", False)


@pytest.mark.parametrize(
    ("action", "parameters", "sentence"),
    [
        (READ, {}, "parameters: Object missing required field `path`"),
        (READ, {"path": 7}, "parameters.path: Expected `str`, got `int`"),
        (READ, {"path": "x", "max_bytes": 0}, "parameters.max_bytes: Expected `int` >= 1"),
        (READ, {"path": "x", "max_bytes": 10**9}, "parameters.max_bytes: Expected `int` <= 8388608"),
        (READ, {"path": "x", "offset": -1}, "parameters.offset: Expected `int` >= 0"),
        (READ, {"path": "x", "encoding": "latin-1"}, "parameters.encoding: Invalid enum value 'latin-1'"),
        (WRITE, {"path": "x"}, "parameters: Object missing required field `content`"),
        (WRITE, {"path": "x", "content": "", "mode": "rw"}, "parameters.mode: expected an octal mode"),
        (WRITE, {"path": "x", "content": "", "mode": "4755"}, "parameters.mode: expected an octal mode"),
        (WRITE, {"path": "x", "content": "\ud83d"}, "parameters.content: half of a character"),
        (READ, {"path": "."}, "parameters.path: '.' is no regular file"),
        (WRITE, {"path": "", "content": ""}, "parameters.path: '' is a directory"),
        (WRITE, {"path": "x/..", "content": ""}, "parameters.path: 'x/..' is a directory"),
        (LIST, {"max_entries": 0}, "parameters.max_entries: Expected `int` >= 1"),
        (DELETE, {"path": ""}, "parameters.path: the workspace itself stays"),
        (DELETE, {"path": "."}, "parameters.path: the workspace itself stays"),
        (DELETE, {"path": "/"}, "parameters.path: '/' is outside of the workspace"),
        *(
            (action, {"path": path, **({"content": "x"} if action == WRITE else {})}, "parameters.path: ")
            for action in (READ, WRITE, LIST, DELETE)
            for path in ("../secret", "/etc/passwd", "out/secret", "a\0b")
        ),
    ],
)
async def test_what_is_wrong_names_the_parameter(
    files: Environment, action: str, parameters: dict[str, object], sentence: str
) -> None:
    (files.root / "out").symlink_to("..")
    kind, message = await files.fails(action, **parameters)
    assert kind in ("ValidationError", "NonRetryableError")
    assert message.startswith(sentence)
    assert (files.root.parent / "secret").read_text() == "s3cret"


async def test_links_are_followed_inside_and_nowhere_else(files: Environment) -> None:
    (files.root / "dir").mkdir()
    (files.root / "current").symlink_to("dir")
    (files.root / "leak").symlink_to(files.root.parent / "secret")
    (files.root / "hole").symlink_to("../new")
    await files.run(WRITE, path="current/file", content="in")
    assert (files.root / "dir" / "file").read_text() == "in"
    assert (await files.run(READ, path="current/file"))["content"] == "in"
    for path in ("leak", "hole"):
        kind, _ = await files.fails(WRITE, path=path, content="overwritten")
        assert kind == "ValidationError"
        kind, _ = await files.fails(WRITE, path=path, content="appended", append=True)
        assert kind == "ValidationError"
    assert (files.root.parent / "secret").read_text() == "s3cret"
    assert not (files.root.parent / "new").exists()


async def test_what_is_no_regular_file_holds_nobody_up(files: Environment) -> None:
    os.mkfifo(files.root / "pipe")
    (files.root / "dir").mkdir()
    for action, more in ((READ, {}), (WRITE, {"content": "x"}), (WRITE, {"content": "x", "append": True})):
        for path in ("pipe", "dir"):
            kind, message = await files.fails(action, path=path, **more)
            assert kind == "NonRetryableError"
            assert "is no regular file" in message


async def test_a_list_tells_what_there_is(files: Environment) -> None:
    (files.root / "b").mkdir()
    (files.root / "b" / "inner").write_text("12345")
    (files.root / "a").symlink_to("b")
    os.mkfifo(files.root / "c")
    (files.root / "b" / "inner").chmod(0o640)
    os.utime(files.root / "b" / "inner", (0, -1e9))
    (files.root / os.fsdecode(b"\xff")).write_text("")
    listed = await files.run(LIST)
    assert [(entry["path"], entry["type"]) for entry in listed["entries"]] == [
        ("a", "symlink"),
        ("b", "directory"),
        ("c", "other"),
        ("\\xff", "file"),
    ]
    assert listed["entries"][0]["target"] == "b"
    listed = await files.run(LIST, recursive=True)
    inner = next(entry for entry in listed["entries"] if entry["path"] == "b/inner")
    assert (inner["size"], inner["mode"], inner["modified_at"]) == (5, "0640", "1970-01-01T00:00:00Z")
    # A link is told and not gone into.
    assert "a/inner" not in [entry["path"] for entry in listed["entries"]]
    assert [entry["path"] for entry in (await files.run(LIST, path="a"))["entries"]] == ["a/inner"]
    kind, message = await files.fails(LIST, path="b/inner")
    assert (kind, message) == ("NonRetryableError", "parameters.path: 'b/inner': not a directory")


async def test_a_list_is_bounded(files: Environment) -> None:
    for number in range(50):
        (files.root / f"{number:02}").write_text("")
    listed = await files.run(LIST, max_entries=10)
    assert [entry["path"] for entry in listed["entries"]] == [f"{number:02}" for number in range(10)]
    assert listed["truncated"] is True
    assert (await files.run(LIST, max_entries=50))["truncated"] is False


async def test_a_list_of_deep_directories_ends(files: Environment) -> None:
    deep = files.root
    for _ in range(100):
        deep = deep / "d"
    deep.mkdir(parents=True)
    listed = await files.run(LIST, recursive=True)
    assert 64 <= len(listed["entries"]) <= 66


async def test_deleting(files: Environment) -> None:
    (files.root / "dir" / "deep").mkdir(parents=True)
    (files.root / "dir" / "file").write_text("")
    (files.root / "link").symlink_to(files.root.parent / "secret")
    (files.root / "dir" / "out").symlink_to("../..")
    assert await files.run(DELETE, path="link") == {"path": "link", "deleted": True}
    kind, message = await files.fails(DELETE, path="dir")
    assert kind == "NonRetryableError"
    assert "directory not empty" in message
    assert "parameters.recursive" in message
    assert (await files.run(DELETE, path="dir/deep"))["deleted"] is True
    assert (await files.run(DELETE, path="dir", recursive=True))["deleted"] is True
    assert await files.run(DELETE, path="dir") == {"path": "dir", "deleted": False}
    assert list(files.root.iterdir()) == []
    assert (files.root.parent / "secret").read_text() == "s3cret"


async def test_a_disk_that_is_full_may_have_room_later(files: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker_child.stock.environment_files.os.write", full)
    kind, message = await files.fails(WRITE, path="x", content="y")
    assert (kind, message) == ("RetryableError", "parameters.path: 'x': no space left on device")
    assert list(files.root.iterdir()) == []


def test_all_actions_are_registered(tmp_path: Path) -> None:

    registry = Registry()
    register(registry, tmp_path)
    assert registry.names() == [
        "environment.bash",
        "environment.files.delete",
        "environment.files.list",
        "environment.files.read",
        "environment.files.write",
        "environment.git.clone",
        "environment.git.diff",
        "environment.git.status",
        "environment.logs.tail",
    ]
    idempotent = {name for name in registry.names() if registry.get(name).idempotent}
    assert idempotent == {name for name in registry.names() if name.endswith((".read", ".list", ".diff", "s", ".tail"))}
