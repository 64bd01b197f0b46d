"""What a supervisor's log says of its processes, kept as plain data. Decides only: entries in, a picture out."""

from collections import Counter
from typing import Any

from msgspec import Struct

MOLD = "mold:default"


class Seat(Struct):
    """One slot, or the mold. `ends` are the causes by incarnation; `was_ready` are the incarnations that ever were."""

    incarnation: int = 0
    pid: int = 0
    is_ready: bool = False
    silent: int = 0
    heard_again: int = 0
    ends: dict[int, str] = {}
    was_ready: set[int] = set()


class Watch:
    """`hear` every entry of the log, in order. `victims` are incarnations that were harmed on purpose."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}
        self.victims: set[tuple[str, int]] = set()
        self.by_pid: dict[int, str] = {}
        self.orphans_ended = 0
        self.faults_of_its_own: list[str] = []
        """Lines that no supervisor in order writes."""
        self.unexpected_ends: list[str] = []

    def seat(self, slot: str) -> Seat:
        """Of a slot that may not have spoken yet."""
        return self.seats.setdefault(slot, Seat())

    def hear(self, entry: dict[str, Any]) -> None:
        """One entry of the supervisor's log. Its children's own entries have no incarnation, and are not heard."""
        slot, incarnation = entry.get("slot", ""), entry.get("incarnation", 0)
        match entry["event"]:
            case "process started":
                seat = self.seat(slot)
                seat.incarnation, seat.pid, seat.is_ready = incarnation, entry["pid"], False
                self.by_pid[seat.pid] = slot
            case "ready":
                seat = self.seat(slot)
                seat.is_ready = True
                seat.was_ready.add(incarnation)
            case "event loop is silent":
                self.seat(slot).silent = incarnation
            case "event loop is heard again":
                self.seat(slot).heard_again = incarnation
            case "process ended":
                self._end(slot, incarnation, entry)
            case "ended a process that nobody ordered":
                self.orphans_ended += 1
            case "unexpected" | "action failed" | "process does not die of SIGKILL":
                self.faults_of_its_own.append(str(entry))

    def _end(self, slot: str, incarnation: int, entry: dict[str, Any]) -> None:
        seat = self.seat(slot)
        seat.ends[incarnation] = entry["cause"]
        if incarnation == seat.incarnation:
            seat.is_ready = False
        if incarnation in seat.was_ready and (slot, incarnation) not in self.victims and not entry.get("asked"):
            self.unexpected_ends.append(f"{slot} incarnation {incarnation}: {entry['cause']} ({entry.get('detail')})")

    def ready_after(self, slot: str, incarnation: int) -> bool:
        """Whether a later incarnation of a slot is at work."""
        seat = self.seat(slot)
        return seat.incarnation > incarnation and seat.is_ready

    def all_ready(self, slots: list[str]) -> bool:
        """Whether every slot and the mold are at work."""
        return all(self.seat(slot).is_ready for slot in (*slots, MOLD))

    def causes(self) -> Counter[str]:
        """How often each cause was told."""
        return Counter(cause for seat in self.seats.values() for cause in seat.ends.values())
