"""The lock that keeps a second supervisor out."""

from pathlib import Path

import pytest

from supervisor.errors import StateDirectoryError
from supervisor.state_directory import take, take_first_free


def test_a_directory_is_made_private_and_is_held_once(tmp_path: Path) -> None:
    first = take(tmp_path / "a" / "state")
    assert (first.path / "journals").stat().st_mode & 0o777 == 0o700
    with pytest.raises(StateDirectoryError, match="is in use by another supervisor"):
        take(tmp_path / "a" / "state")
    first.close()
    first.close()
    take(tmp_path / "a" / "state").close()


def test_the_first_free_number_is_taken_and_taken_again_after_its_end(tmp_path: Path) -> None:
    first, second = take_first_free(tmp_path / "worker"), take_first_free(tmp_path / "worker")
    assert (first.path.name, second.path.name) == ("worker-1", "worker-2")
    first.close()
    again = take_first_free(tmp_path / "worker")
    assert again.path.name == "worker-1"
    again.close()
    second.close()


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match=r"file/state cannot be used \(Not a directory\)") as caught:
        take(tmp_path / "file" / "state")
    assert caught.value.exit_code == 73
