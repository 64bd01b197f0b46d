"""A fleet under orders and deaths in any order, from seeds: whatever happened, it ends as it was asked to be."""

import random
from typing import Any

import pytest

from supervisor import config
from supervisor.fleet import Fleet, Phase
from supervisor.slots import (
    AskToDrain,
    BecameReady,
    Booted,
    Died,
    Event,
    EvidenceKept,
    KeepEvidence,
    KillProcess,
    LoopBeat,
    SaidBye,
    Spawned,
    SpawnFailed,
    SpawnProcess,
    State,
)
from wire import pipe

LIVE = (State.BOOTING, State.CONNECTING, State.CONNECTING_SILENT, State.READY, State.READY_SILENT, State.LEAVING)


class World:
    """What the fleet's orders lead to, with faults that a seed chooses."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.pools = {"a": self.pool("a"), "b": self.pool("b")}
        self.fleet = Fleet(self.settings(), "build")
        self.processes: dict[tuple[str, int], str] = {}
        self.started: set[tuple[str, int]] = set()

    def pool(self, name: str) -> config.Pool:
        return config.Pool(
            name=name,
            workers=self.random.randint(1, 5),
            concurrency=self.random.randint(1, 3),
            modules=self.random.choice([[], ["m"]]),
            restart=config.Restart(max_unavailable=config.Percent(self.random.choice([1, 25, 50, 100]))),
        )

    def settings(self) -> config.Config:
        return config.Config(
            control_plane=config.ControlPlane(),
            supervisor=config.Supervisor(),
            pool=list(self.pools.values()),
            credential=config.Credential(source="test", key_file="/nonexistent"),
        )

    def took(self, steps: list[Any]) -> None:
        for step in steps:
            match step:
                case SpawnProcess():
                    key = (step.slot, step.incarnation)
                    # Slot and incarnation name one process, ever.
                    assert key not in self.started
                    self.started.add(key)
                    self.fleet.terms(step.slot)
                    self.processes[key] = "ordered"
                case AskToDrain() | KillProcess():
                    if (step.slot, step.incarnation) in self.processes:
                        self.processes[step.slot, step.incarnation] = "ending"
                case KeepEvidence():
                    self.tell(EvidenceKept, (step.slot, step.incarnation), hung=step.hung)

    def tell(self, kind: type[Event], key: tuple[str, int], **fields: Any) -> None:
        self.took(self.fleet.step(kind(slot=key[0], incarnation=key[1], **fields), self.now))

    def die(self, key: tuple[str, int], exit_code: int = 1) -> None:
        del self.processes[key]
        self.tell(Died, key, exit_code=exit_code, signal=None, jitter=self.random.random(), output=[])

    def advance(self, key: tuple[str, int], *, faults: bool) -> None:
        """One thing that a process does next."""
        stage = self.processes[key]
        if faults and self.random.random() < 0.1:
            if stage == "ordered":
                del self.processes[key]
                self.tell(SpawnFailed, key, message="no memory", jitter=0.5)
            elif self.random.random() < 0.3:
                bye = pipe.Bye(
                    slot=key[0], incarnation=key[1], reason="cannot work", refused=self.random.random() < 0.5
                )
                self.tell(SaidBye, key, bye=bye)
                self.processes[key] = "ending"
            else:
                self.die(key)
            return
        match stage:
            case "ordered":
                self.processes[key] = "spawned"
                self.tell(Spawned, key, pid=1)
            case "spawned":
                self.processes[key] = "booted"
                self.tell(Booted, key, build="build")
            case "booted":
                self.processes[key] = "ready"
                self.tell(BecameReady, key)
            case "ready":
                beat = pipe.Beat(slot=key[0], incarnation=key[1], source="loop", session="registered")
                self.tell(LoopBeat, key, beat=beat)
            case _:
                self.die(key, exit_code=0)

    def round(self, *, faults: bool) -> None:
        keys = list(self.processes)
        self.random.shuffle(keys)
        for key in keys:
            if key in self.processes and (not faults or self.random.random() < 0.7):
                self.advance(key, faults=faults)
        self.took(self.fleet.tick(self.now))
        self.now += self.random.random() if faults else 10.0
        names = [slot.name for slot in self.fleet.slots]
        assert len(names) == len(set(names))

    def order(self) -> None:
        """Something that an operator may ask for, under the conditions under which the commands ask for it."""
        if self.fleet.busy():
            return
        pool = self.random.choice([pool for pool in self.fleet.pools if not pool.retired])
        child = self.random.choice(pool.children) if pool.children else None
        match self.random.randrange(5):
            case 0:
                if not pool.is_rolling:
                    self.took(pool.scale(self.random.randint(1, 6), 30.0, self.now))
            case 1 if child is not None:
                if not pool.role(child.name):
                    self.took(pool.hold(child.name, 30.0, self.now))
            case 2 if child is not None:
                pool.replace([child.name], 30.0)
            case 3:
                pool.replace([one.name for one in pool.staying], 30.0)
            case _:
                for name in [name for name in "abc" if self.random.random() < 0.7]:
                    if name in self.pools and len(self.pools) > 1 and self.random.random() < 0.4:
                        del self.pools[name]
                    else:
                        self.pools[name] = self.pool(name)
                if self.fleet.busy(self.settings()):
                    return
                _, steps = self.fleet.begin_change(self.settings(), self.now)
                self.took(steps)


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_the_fleet_ends_as_it_was_asked_to_be(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.round(faults=True)
        if world.random.random() < 0.15:
            world.order()
        assert world.fleet.phase is Phase.RUNNING or world.fleet.error is not None
        if world.fleet.error is not None:
            return
    for _ in range(150):
        world.round(faults=False)
    for pool in world.fleet.pools:
        assert (pool.retired, pool.leaving, pool.is_rolling, pool.trial) == (False, set(), False, None)
        assert len(pool.children) == pool.settings.workers
        assert {child.state for child in pool.children if child.name not in pool.held} == {State.READY} or (
            len(pool.held) == len(pool.children)
        )
        assert [mold.state for mold in pool.molds] == [State.READY]
    slots = {slot.name for slot in world.fleet.slots}
    assert {key[0] for key in world.processes} <= slots
    world.took(world.fleet.stop("SIGTERM", world.now))
    for _ in range(100):
        world.round(faults=False)
    assert world.fleet.phase is Phase.OVER
    assert world.processes == {}
