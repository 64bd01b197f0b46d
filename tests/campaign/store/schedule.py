"""Which faults a campaign against a store commits, and when: decided by a seed, so that it can be had again.

Decides only. A fault comes `pause` seconds after the one before it is made good: a moment that no batch, no commit and
no wake-up knows of.
"""

import random
from typing import Literal

from msgspec import Struct

from tests.campaign.changes import CampaignError

StoreKind = Literal["sqlite", "postgresql"]

KILL, KILL_ALL = "kill a control plane", "kill every control plane"
RESTART, CRASH = "restart postgresql", "crash postgresql"
CUT, CUT_ALL = "cut a connection", "cut every connection"

REPLICAS: dict[StoreKind, int] = {"sqlite": 1, "postgresql": 2}
_SHARE_OF_KILLS_OF_ALL = 0.2
_SHARE_OF_CUTS_OF_ALL = 0.5
_PAUSES = (1.2, 2.4)
"""Seconds. The one before a fault shows what is usual, and is to have nothing of the fault before."""


class Terms(Struct, frozen=True, kw_only=True):
    """What to do to which store. Restarts and cuts are PostgreSQL's."""

    seed: int
    store: StoreKind
    kills: int
    restarts: int = 0
    cuts: int = 0

    def __post_init__(self) -> None:
        if self.store == "sqlite" and (self.restarts or self.cuts):
            raise CampaignError("a file is not restarted, and nobody is connected to it")


class Fault(Struct, frozen=True, kw_only=True):
    """The `number`-th fault of a schedule, from 1. `victim` chooses among replicas, or among connections."""

    number: int
    kind: str
    victim: int
    pause: float


def schedule(terms: Terms) -> list[Fault]:
    """The same for the same terms, on every machine."""
    chance = random.Random(terms.seed)
    replicas = REPLICAS[terms.store]
    kinds = [
        KILL_ALL if replicas > 1 and chance.random() < _SHARE_OF_KILLS_OF_ALL else KILL for _ in range(terms.kills)
    ]
    # In turn, so that even a short campaign has both.
    kinds += [CRASH if number % 2 else RESTART for number in range(terms.restarts)]
    kinds += [CUT_ALL if chance.random() < _SHARE_OF_CUTS_OF_ALL else CUT for _ in range(terms.cuts)]
    chance.shuffle(kinds)
    return [
        Fault(number=number, kind=kind, victim=chance.randrange(1 << 16), pause=chance.uniform(*_PAUSES))
        for number, kind in enumerate(kinds, 1)
    ]
