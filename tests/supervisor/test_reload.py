"""The plan of a reload: every row of the table, and every key."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from supervisor import config, reload
from supervisor.config import Config, ControlPlane, Limits, Pool, PositiveDuration, Restart, Secret, Supervisor
from supervisor.reload import PoolPlan


def settings(*pools: Pool, **changes: Any) -> Config:
    return Config(
        control_plane=changes.get("control_plane", ControlPlane()),
        supervisor=changes.get("supervisor", Supervisor()),
        pool=list(pools) or [Pool(name="rig")],
        credential=changes.get("credential", config.Credential(source="test", key_file="/key")),
    )


def planned(old: Config, new: Config, slots: int = 2) -> reload.Plan:
    names = {pool.name: [f"{pool.name}-{number}" for number in range(1, slots + 1)] for pool in old.pool}
    return reload.plan(old, new, names)


def rig(**changes: Any) -> Pool:
    return Pool(**({"name": "rig"} | changes))


KEEP = {"rig-1": "keep", "rig-2": "keep"}
ROLL = {"rig-1": "restart", "rig-2": "restart"}

TABLE: list[tuple[str, Pool, Pool, PoolPlan]] = [
    (
        "nothing, no modules",
        rig(),
        rig(),
        PoolPlan(name="rig", action="keep", why="nothing changed", slots=KEEP),  # type: ignore[arg-type]
    ),
    (
        "nothing, but modules",
        rig(modules=["m"]),
        rig(modules=["m"]),
        PoolPlan(name="rig", action="roll", why="its modules may have changed", slots=ROLL),  # type: ignore[arg-type]
    ),
    (
        "what children are told",
        rig(),
        rig(concurrency=3, queues=["a"]),
        PoolPlan(name="rig", action="roll", why="changed: concurrency, queues", slots=ROLL),  # type: ignore[arg-type]
    ),
    (
        "limits and policy",
        rig(),
        rig(limits=Limits(boot=PositiveDuration(7)), restart=Restart(backoff_max=PositiveDuration(9))),
        PoolPlan(name="rig", action="adjust", why="changed: limits, restart", slots=KEEP),  # type: ignore[arg-type]
    ),
    (
        "more workers",
        rig(),
        rig(workers=5),
        PoolPlan(name="rig", action="adjust", why="changed: workers", slots=KEEP, starts=3),  # type: ignore[arg-type]
    ),
    (
        "fewer workers",
        rig(),
        rig(workers=1),
        PoolPlan(name="rig", action="adjust", why="changed: workers", slots={"rig-1": "keep", "rig-2": "drain"}),
    ),
    (
        "fewer workers, with modules",
        rig(modules=["m"]),
        rig(modules=["m"], workers=1),
        PoolPlan(name="rig", action="roll", why="changed: workers", slots={"rig-1": "restart", "rig-2": "drain"}),
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_pool_that_stays(old: Pool, new: Pool, expected: PoolPlan) -> None:
    assert planned(settings(old), settings(new)) == reload.Plan(refused=[], pools=[expected])


def test_a_pool_that_comes_and_one_that_goes() -> None:
    plan = planned(settings(rig()), settings(Pool(name="new", workers=3)))
    assert plan.pools == [
        PoolPlan(name="new", action="start", why="it is new", slots={}, starts=3),
        PoolPlan(name="rig", action="drain", why="it is not in the file", slots={"rig-1": "drain", "rig-2": "drain"}),
    ]
    assert [pool.needs_new_mold for pool in plan.pools] == [True, False]


def test_an_exchange_that_is_not_over_begins_anew() -> None:
    plan = reload.plan(settings(rig()), settings(rig()), {"rig": ["rig-1", "rig-2"]}, {"rig"})
    assert (plan.pools[0].action, plan.pools[0].why) == ("roll", "changed: an earlier exchange")


def test_a_scaled_pool_goes_back_to_the_number_in_the_file() -> None:
    plan = reload.plan(settings(rig(workers=2)), settings(rig(workers=2)), {"rig": ["rig-1"]})
    assert (plan.pools[0].action, plan.pools[0].starts) == ("adjust", 1)


OTHER: dict[str, Any] = {
    "listen": "127.0.0.1:1",
    "state_dir": "/elsewhere",
    "runtime_dir": "/elsewhere",
    "instance_id": "other",
    "log_format": "json",
    "log_level": "debug",
    "drain_timeout": PositiveDuration(99),
}


@pytest.mark.parametrize("key", Supervisor.__struct_fields__)
def test_every_key_of_the_supervisor_is_refused_or_told_to_all_children(key: str) -> None:
    plan = planned(settings(rig()), settings(rig(), supervisor=Supervisor(**{key: OTHER[key]})))
    if key in reload.LIVE_KEYS:
        assert (plan.refused, plan.pools[0].action) == ([], "roll")
        assert plan.pools[0].why == f"changed: supervisor.{key}"
    else:
        assert plan.pools == []
        assert plan.refused[0].startswith(f"supervisor.{key}: ")
        assert plan.refused[0].endswith("restart the service")


@pytest.mark.parametrize("key", ControlPlane.__struct_fields__)
def test_every_key_of_an_embedded_control_plane_is_refused(key: str) -> None:
    old = ControlPlane(embedded=True)
    value = False if key == "embedded" else PositiveDuration(77) if "_duration" in key or "_cadence" in key else "x"
    plan = planned(
        settings(rig(), control_plane=old),
        settings(rig(), control_plane=msgspec.structs.replace(old, **{key: value})),
    )
    assert [sentence.partition(":")[0] for sentence in plan.refused] == [f"control_plane.{key}"]
    assert plan.pools == []


@pytest.mark.parametrize(("key", "action"), [("api_url", "roll"), ("project", "roll"), ("store", "keep")])
def test_another_control_plane_is_told_to_all_children(key: str, action: str) -> None:
    plan = planned(settings(rig()), settings(rig(), control_plane=ControlPlane(**{key: "x"})))
    assert (plan.refused, plan.pools[0].action) == ([], action)


def key(text: str) -> config.Credential:
    return config.Credential(source="test", key=Secret(text))


@pytest.mark.parametrize(("new", "action"), [("mbx_a", "keep"), ("mbx_b", "roll")])
def test_another_key_is_told_to_all_children_and_to_nobody_else(new: str, action: str) -> None:
    plan = planned(settings(rig(), credential=key("mbx_a")), settings(rig(), credential=key(new)))
    assert plan.pools[0].action == action
    assert "mbx_" not in "".join(reload.lines(plan))


def test_the_plan_in_words() -> None:
    plan = planned(settings(rig(modules=["m"])), settings(rig(modules=["m"], workers=3)))
    assert reload.lines(plan) == [
        "pool rig: roll (changed: workers); new mold",
        "  rig-1: restart rolling, its replacement ready first",
        "  rig-2: restart rolling, its replacement ready first",
        "  1 more: start",
    ]


def test_every_key_of_a_pool_that_is_not_in_place_needs_new_processes() -> None:
    values: dict[str, Any] = {
        "workers": 9,
        "limits": Limits(max_jobs=1),
        "restart": Restart(max_unavailable=config.Percent(9)),
    }
    change: Callable[[str], Any] = lambda name: values.get(name, "other")  # noqa: E731
    for name in (one for one in Pool.__struct_fields__ if one != "name"):
        new = msgspec.structs.replace(rig(), **{name: change(name)})
        expected = "adjust" if name in reload.IN_PLACE_KEYS else "roll"
        assert planned(settings(rig()), settings(new)).pools[0].action == expected, name
