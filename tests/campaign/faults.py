"""One fault committed, and followed until the slot is at work again. Acts."""

import contextlib
import os
import signal
import time

from msgspec import Struct

from tests.campaign.changes import CampaignError, Changes
from tests.campaign.desk import Desk
from tests.campaign.schedule import KINDS, Fault
from tests.campaign.watch import MOLD, Watch

RECOVERY = 90.0
"""Seconds from a fault to the slot's next worker, at the very worst: a mold that hangs, on a machine that is busy."""


class Recovery(Struct, frozen=True, kw_only=True):
    """A fault and the seconds from it until its slot was at work again."""

    fault: Fault
    seconds: float


class Faults:
    """Commits faults on the processes that `watch` knows of."""

    def __init__(self, watch: Watch, changes: Changes, desk: Desk) -> None:
        self._watch = watch
        self._changes = changes
        self._desk = desk

    async def until_ready(self, *slots: str) -> None:
        """Every one of them is at work."""
        seats = [self._watch.seat(slot) for slot in slots]
        await self._changes.until(lambda: all(seat.is_ready for seat in seats), RECOVERY, f"{slots} are ready")

    async def commit(self, fault: Fault) -> Recovery:
        """Raises CampaignError when the supervisor did not see what happened, or did not make it good in time."""
        kind = KINDS[fault.kind]
        seat = self._watch.seat(fault.slot)
        incarnation, pid = seat.incarnation, seat.pid
        self._watch.victims.add((fault.slot, incarnation))
        if kind.at_boot:
            self._desk.orders[fault.slot] = kind.at_boot
        began = time.monotonic()
        if not kind.cause:
            await self._stop_for_a_while(fault, incarnation, pid)
            return Recovery(fault=fault, seconds=time.monotonic() - began)
        mold = self._watch.seat(MOLD).incarnation
        if kind.mold:
            # Nobody is forked until there is another one.
            self._watch.victims.add((MOLD, mold))
            _send(fault, self._watch.seat(MOLD).pid, kind.mold)
        left_behind = self._watch.orphans_ended
        _send(fault, pid, fault.signal)
        await self._end(fault, fault.slot, incarnation, kind.cause)
        if kind.mold:
            await self._end(fault, MOLD, mold, kind.mold_cause)
        if kind.at_boot:
            await self._end_at_boot(fault, incarnation, kind.cause_at_boot)
        what = f"{_told(fault)}: the slot is at work again"
        await self._changes.until(lambda: self._watch.ready_after(fault.slot, incarnation), RECOVERY, what)
        if fault.kind == "leave a process behind":
            what = f"{_told(fault)}: what it left behind is ended"
            await self._changes.until(lambda: self._watch.orphans_ended > left_behind, RECOVERY, what)
        return Recovery(fault=fault, seconds=time.monotonic() - began)

    async def _end(self, fault: Fault, slot: str, incarnation: int, cause: str) -> None:
        ends = self._watch.seat(slot).ends
        what = f"{_told(fault)}: incarnation {incarnation} of {slot} has ended"
        await self._changes.until(lambda: incarnation in ends, RECOVERY, what)
        if ends[incarnation] != cause:
            raise CampaignError(
                f"{_told(fault)}: the supervisor calls the end of {slot} {ends[incarnation]!r}, not {cause!r}"
            )

    async def _end_at_boot(self, fault: Fault, incarnation: int, cause: str) -> None:
        """Of the first that came as far as the desk: a mold that is harmed meanwhile forks nobody."""
        ends = self._watch.seat(fault.slot).ends
        await self._changes.until(
            lambda: any(ends[later] == cause for later in ends if later > incarnation),
            RECOVERY,
            f"{_told(fault)}: a later incarnation than {incarnation} has ended of it",
        )

    async def _stop_for_a_while(self, fault: Fault, incarnation: int, pid: int) -> None:
        """Until the supervisor names the silence; a worker that goes on in time is left alone."""
        seat = self._watch.seat(fault.slot)
        _send(fault, pid, signal.SIGSTOP)
        try:
            await self._changes.until(lambda: seat.silent == incarnation, RECOVERY, f"{_told(fault)}: named silent")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        what = f"{_told(fault)}: heard again"
        await self._changes.until(lambda: seat.heard_again == incarnation, RECOVERY, what)


def _send(fault: Fault, pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise CampaignError(f"{_told(fault)}: process {pid} was said to be ready, and is not there") from None


def _told(fault: Fault) -> str:
    return f"fault {fault.number} ({fault.kind}, {signal_name(fault.signal)} to {fault.slot})"


def signal_name(number: int) -> str:
    """As people write it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
