"""A pool file that changed: what runs x what is wanted -> what is done with each pool and each slot. Decides only.

| what changed                                          | what is done                                              |
|-------------------------------------------------------|-----------------------------------------------------------|
| a key of the supervisor or an embedded control plane  | the whole file is refused: restart the service            |
| nothing, or anything, of a pool that has modules      | a new mold, children exchanged: their code may be new     |
| what the children of a pool are told                  | a new mold, children exchanged                            |
| an earlier exchange is not over                       | a new mold, children exchanged                            |
| limits, restart policy, number of workers; no modules | applied in place; what is missing started, excess drained |
| a pool is new / is gone                               | started / drained                                         |
| nothing, no modules                                   | kept                                                      |
"""

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from supervisor.config import Config, ControlPlane, Credential, Pool, Supervisor

PoolAction = Literal["keep", "adjust", "roll", "start", "drain"]
SlotAction = Literal["keep", "restart", "drain"]

LIVE_KEYS = ("log_level", "drain_timeout")
"""Keys of `[supervisor]` that a running supervisor takes over."""

IN_PLACE_KEYS = ("workers", "limits", "restart")
"""Keys of `[[pool]]` that need no new process."""

_UNUSED_BY_WORKERS = (
    "listen", "store", "store_password_file", "lease_duration", "heartbeat_cadence", "keep_finished", "metrics_listen",
    "embedded",
)  # fmt: skip


class PoolPlan(Struct, frozen=True, kw_only=True):
    """One pool: what is done and why, with each of its present slots, and how many more are started."""

    name: str
    action: PoolAction
    why: str
    slots: dict[str, SlotAction]
    starts: int = 0

    @property
    def needs_new_mold(self) -> bool:
        """Whether the pool's modules are imported anew."""
        return self.action in ("roll", "start")


class Plan(Struct, frozen=True, kw_only=True):
    """`refused` are sentences; when there are any, nothing is done."""

    refused: list[str]
    pools: list[PoolPlan]


def plan(
    running: Config, wanted: Config, slots: Mapping[str, list[str]], rolling: Collection[str] = frozenset()
) -> Plan:
    """What it takes to get from one to the other.

    `slots` are the names of each pool's children, in order; `rolling` are pools of which some children have older
    settings than the pool.
    """
    refused = _refused(running, wanted)
    shared = _shared_change(running, wanted)
    old = {pool.name: pool for pool in running.pool}
    pools = [
        _pool_plan(
            old.get(pool.name),
            pool,
            shared or ("an earlier exchange" if pool.name in rolling else ""),
            slots.get(pool.name, []),
        )
        for pool in wanted.pool
    ]
    names = {pool.name for pool in wanted.pool}
    pools += [
        PoolPlan(
            name=name, action="drain", why="it is not in the file", slots=dict.fromkeys(slots.get(name, []), "drain")
        )
        for name in old
        if name not in names
    ]
    return Plan(refused=refused, pools=[] if refused else pools)


def lines(planned: Plan) -> list[str]:
    """The plan for people: a line for each pool and each slot, or the refusals."""
    words: dict[SlotAction, str] = {
        "keep": "keep",
        "restart": "restart rolling, its replacement ready first",
        "drain": "drain",
    }
    told = list(planned.refused)
    for pool in planned.pools:
        mold = "; new mold" if pool.needs_new_mold else ""
        told.append(f"pool {pool.name}: {pool.action} ({pool.why}){mold}")
        told += [f"  {slot}: {words[action]}" for slot, action in pool.slots.items()]
        if pool.starts:
            told.append(f"  {pool.starts} more: start")
    return told


def _refused(running: Config, wanted: Config) -> list[str]:
    keys = [
        f"supervisor.{key}"
        for key in Supervisor.__struct_fields__
        if key not in LIVE_KEYS and getattr(running.supervisor, key) != getattr(wanted.supervisor, key)
    ]
    if running.control_plane.embedded != wanted.control_plane.embedded:
        keys.append("control_plane.embedded")
    elif running.control_plane.embedded:
        keys += [f"control_plane.{key}" for key in _changed(running.control_plane, wanted.control_plane)]
    return [
        f"{key}: expected the value that the supervisor was started with, because a reload cannot change it; "
        "restart the service"
        for key in keys
    ]


def _shared_change(running: Config, wanted: Config) -> str:
    """What changed of that which every child is told; empty for nothing."""
    keys = [
        f"control_plane.{key}"
        for key in _changed(running.control_plane, wanted.control_plane)
        if key not in _UNUSED_BY_WORKERS
    ]
    keys += [f"supervisor.{key}" for key in _changed(running.supervisor, wanted.supervisor) if key in LIVE_KEYS]
    if _credential(running.credential) != _credential(wanted.credential):
        keys.append("the API key")
    return ", ".join(dict.fromkeys(keys))


def _pool_plan(old: Pool | None, new: Pool, shared: str, slots: list[str]) -> PoolPlan:
    if old is None:
        return PoolPlan(name=new.name, action="start", why="it is new", slots={}, starts=new.workers)
    changed = _changed(old, new)
    starts = max(0, new.workers - len(slots))
    told = [key for key in changed if key not in IN_PLACE_KEYS]
    why = ", ".join([*([shared] if shared else []), *changed])
    if told or shared or new.modules or new.entry_points:
        why = f"changed: {why}" if why else "its modules may have changed"
        actions = _slot_actions(slots, new.workers, "restart")
        return PoolPlan(name=new.name, action="roll", why=why, slots=actions, starts=starts)
    actions = _slot_actions(slots, new.workers, "keep")
    if changed or starts or len(slots) > new.workers:
        why = f"changed: {why}" if why else "another number of children"
        return PoolPlan(name=new.name, action="adjust", why=why, slots=actions, starts=starts)
    return PoolPlan(name=new.name, action="keep", why="nothing changed", slots=actions)


def _slot_actions(slots: list[str], workers: int, staying: SlotAction) -> dict[str, SlotAction]:
    return {slot: staying if index < workers else "drain" for index, slot in enumerate(slots)}


def _changed(old: ControlPlane | Supervisor | Pool, new: ControlPlane | Supervisor | Pool) -> list[str]:
    return [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]


def _credential(credential: Credential) -> tuple[str | None, str | None]:
    return credential.key_file, credential.key.reveal() if credential.key is not None else None


def running(config: Config, pools: list[Pool]) -> Config:
    """The configuration with its pools as they are now, which may be scaled."""
    return msgspec.structs.replace(config, pool=pools)
