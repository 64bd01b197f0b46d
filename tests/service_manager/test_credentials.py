import os
from pathlib import Path

import pytest

from service_manager.credentials import credential, others_can_read


@pytest.mark.parametrize(("mode", "others"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_of_ours_is_for_us_alone(tmp_path: Path, mode: int, others: bool) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    assert others_can_read(path) == others


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of root's")
@pytest.mark.parametrize(("mode", "others"), [(0o640, False), (0o660, True), (0o644, True)])
def test_a_group_may_read_what_root_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, others: bool
) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert others_can_read(path) == others


def test_credentials_have_the_mode_that_systemd_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").touch(mode=0o440)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert credential("key") is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    found = credential("key")
    assert found is not None
    assert not others_can_read(found)
    assert credential("other") is None
