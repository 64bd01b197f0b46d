"""Which faults a campaign commits, on whom and when: decided by a seed, so that it can be had again.

Decides only. A fault is committed when `pause` more jobs of the load have finished since the one before it; with a
pause of 0 it comes at once, while others are still being recovered from.
"""

import random
import signal

from msgspec import Struct

BLOCK_THE_LOOP = signal.SIGRTMIN + 1
HOLD_THE_INTERPRETER = signal.SIGRTMIN + 2
EXIT = signal.SIGRTMIN + 3
LEAVE_A_PROCESS_BEHIND = signal.SIGRTMIN + 4
"""Signals by which the campaign's workers (see handlers.py) are told to do themselves harm."""

LONGEST_PAUSE = 4
"""Jobs."""


class Kind(Struct, frozen=True, kw_only=True):
    """One kind of fault.

    `weight` is its share of a schedule, `signals` of which one is sent, `cause` how the supervisor must call the end of
    the victim ("": it must live on). `at_boot` is what the victim's successor does when it boots, `mold` a signal for
    the pool's mold, sent before the victim's; each with how the supervisor must call the end of that process.
    """

    weight: int
    signals: tuple[int, ...] = (signal.SIGKILL,)
    cause: str = "signal"
    at_boot: str = ""
    cause_at_boot: str = ""
    mold: int = 0
    mold_cause: str = ""


KINDS: dict[str, Kind] = {
    "kill": Kind(weight=20),
    "ask to stop": Kind(weight=8, signals=(signal.SIGTERM, signal.SIGINT), cause="exit"),
    "signal": Kind(
        weight=10,
        signals=(
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGALRM,
            signal.SIGVTALRM,
            signal.SIGPROF,
            signal.SIGIO,
            signal.SIGPWR,
            signal.SIGSTKFLT,
            signal.SIGTRAP,
            signal.SIGSYS,
            signal.SIGXCPU,
            signal.SIGRTMAX,
        ),
    ),
    "crash": Kind(
        weight=10,
        signals=(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    ),
    "exit": Kind(weight=6, signals=(EXIT,), cause="exit"),
    "stop": Kind(weight=10, signals=(signal.SIGSTOP,), cause="hung"),
    "stop for a while": Kind(weight=6, signals=(signal.SIGSTOP,), cause=""),
    "block the loop": Kind(weight=10, signals=(BLOCK_THE_LOOP,), cause="hung"),
    "hold the interpreter": Kind(weight=6, signals=(HOLD_THE_INTERPRETER,), cause="hung"),
    "leave a process behind": Kind(weight=5, signals=(LEAVE_A_PROCESS_BEHIND,), cause="exit"),
    "hang at boot": Kind(weight=6, at_boot="hang", cause_at_boot="boot_timeout"),
    "die at boot": Kind(weight=6, at_boot="die", cause_at_boot="exit"),
    "kill the mold": Kind(weight=3, mold=signal.SIGKILL, mold_cause="signal"),
    "stop the mold": Kind(weight=1, mold=signal.SIGSTOP, mold_cause="hung"),
}


class Fault(Struct, frozen=True, kw_only=True):
    """The `number`-th fault of a schedule, from 1: `signal` to the process in `slot`, `pause` jobs after the last."""

    number: int
    kind: str
    slot: str
    signal: int
    pause: int


def slot_names(workers: int) -> list[str]:
    """The slots of the campaign's pool."""
    return [f"default-{number}" for number in range(1, workers + 1)]


def schedule(seed: int, faults: int, workers: int) -> list[Fault]:
    """The same for the same arguments, on every machine; a longer one begins like a shorter one."""
    chance = random.Random(seed)
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    slots = slot_names(workers)
    chosen = []
    for number in range(1, faults + 1):
        (kind,) = chance.choices(names, weights)
        chosen.append(
            Fault(
                number=number,
                kind=kind,
                slot=chance.choice(slots),
                signal=int(chance.choice(KINDS[kind].signals)),
                pause=max(0, chance.randint(-LONGEST_PAUSE, LONGEST_PAUSE)),
            )
        )
    return chosen
