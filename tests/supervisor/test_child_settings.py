"""What a child is told, from the pool file."""

from pathlib import Path

import msgspec
import pytest

from supervisor import config
from supervisor.child_settings import child_settings, mold_settings, worker_instance_id
from wire.pipe import PreviousEnd


def built(tmp_path: Path, *pools: dict[str, object]) -> config.Config:
    document = {"pool": list(pools), "supervisor": {"state_dir": "state", "drain_timeout": "7s"}}
    return config.build(document, tmp_path, {"MOBIUS_API_KEY": "mbx_test"})


@pytest.mark.parametrize(
    ("pools", "plain", "slot", "expected"),
    [
        ([{"name": "rig", "workers": 2}], False, "rig-2", "box-2"),
        ([{"name": "rig", "workers": 1}], False, "rig-1", "box-1"),
        ([{"name": "rig", "workers": 1}], True, "rig-1", "box"),
        ([{"name": "rig", "workers": 2}], True, "rig-1", "box-1"),
        ([{"name": "a-1"}, {"name": "b"}], False, "a-1-2", "box-a-1-2"),
    ],
)
def test_identities(tmp_path: Path, pools: list[dict[str, object]], plain: bool, slot: str, expected: str) -> None:
    settings = msgspec.structs.replace(built(tmp_path, *pools), plain_instance_id=plain)
    assert worker_instance_id(settings, slot, "box") == expected


def test_a_child_is_told_what_its_pool_says(tmp_path: Path) -> None:
    pool = {
        "name": "rig",
        "concurrency": 3,
        "queues": ["a"],
        "actions": ["x"],
        "models": ["p/m"],
        "environment_id": "env",
        "limits": {"kill_after": "20s", "identity_conflict": "4s"},
    }
    settings = built(tmp_path, pool)
    end = PreviousEnd(incarnation=1, cause="signal", detail="signal 11", self_made=True)
    told = child_settings(settings, settings.pool[0], "rig-1", "box", end)
    assert (told.concurrency, told.queues, told.actions, told.models) == (3, ["a"], ["x"], ["p/m"])
    assert (told.environment_id, told.drain_grace, told.hang_limit, told.identity_conflict) == ("env", 7.0, 20.0, 4.0)
    assert (told.api_key, told.api_key_file) == ("mbx_test", None)
    assert told.journal_path == f"{tmp_path}/state/journals/rig-1.journal"
    assert told.previous_end == end


def test_a_pool_without_a_journal_names_none(tmp_path: Path) -> None:
    settings = built(tmp_path, {"journal": "off"})
    assert child_settings(settings, settings.pool[0], "default-1", "box", None).journal_path == ""


def test_a_mold_is_told_what_to_import_and_no_secret(tmp_path: Path) -> None:
    settings = built(tmp_path, {"modules": ["m"], "preload": False})
    told = mold_settings(settings, settings.pool[0])
    assert (told.modules, told.module_path, told.preload) == (["m"], [str(tmp_path)], False)
    assert b"mbx_test" not in msgspec.msgpack.encode(told)
