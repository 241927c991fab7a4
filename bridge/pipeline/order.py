"""Which events of a lane may go as far as their keys are concerned: those of one key, one after another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from time import monotonic

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import DeadLetter
from bridge.pipeline.parking import Parking
from bridge.pipeline.waiting import Waiting

MOST_BEHIND = 100
"""Events of one lane that are held in memory behind others that back off; further ones wait in the store.
A lane of few holds a quarter of its queue."""
_TOGETHER = 32
"""Events of one key that come back from the store at once."""
_TELL_SECONDS = 60.0
"""Of failing, after which the log tells that others wait for an event; and between two such lines."""
_KEYS = (str, bytes, bool, int, float, list, datetime, timedelta)
_log = structlog.get_logger(__name__)


def order_key(source: str, order_by: str, value: object) -> int | None:
    """Make the key of an event from what `order_by` gave for it: None where that is null, or an empty text.

    The events of a source have one key in common where the same expression gave the same value. Two keys
    that come to one number (of 2**63) cost no more than that their events wait for each other.
    Raise TypeError for a value that is no key.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, _KEYS):
        raise TypeError(f"`order_by` gave {type(value).__name__}, expected text, a number or a list of them")
    text = f"{len(source)}:{source}{len(order_by)}:{order_by}{value!r}"
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


@dataclass(slots=True)
class _Line:
    """The events of one key that are in the lane."""

    events: OrderedDict[Delivery, None] = field(default_factory=OrderedDict)
    """In the order they came. The first is the one that may go."""
    failed_at: float | None = None
    """Monotonic time since which the first backs off; None while it does not."""
    to_park: bool = False
    """Whether all are to be parked, once the first can be."""

    @property
    def behind(self) -> int:
        """How many are held behind one that backs off."""
        return len(self.events) - 1 if self.failed_at is not None and self.events else 0


class Order:
    """Lets the first event of a key go, and the next one when that has come to its end.

    What is parked of a key must not be overtaken, by a restart neither. So no event is written to the store
    while one before it is in memory alone: all of its key that are not stored yet go together, and wait for
    that if the first is in an attempt. Behind an event that backs off few are held in memory: the further
    ones wait in the store apart from those of other keys (`Parking.set_aside`), whom they hold up nowhere.
    """

    def __init__(
        self,
        service: str,
        waiting: Waiting,
        parking: Parking,
        *,
        queue: int,
        parks: Callable[[], bool],
        let_go: Callable[[Delivery], None],
        park: Callable[[Delivery, int], None],
    ) -> None:
        """Order what is in the lane `service`, which lets in `queue` events.

        `parks` tells whether events may be written to its store now. `let_go` queues one for its attempt,
        `park` takes one out of the queue, and has it written with its key.
        """
        self._service = service
        self._waiting = waiting
        self._parking = parking
        self._most_behind = max(1, min(MOST_BEHIND, queue // 4))
        self._parks = parks
        self._let_go = let_go
        self._park = park
        self.keys: dict[Delivery, int] = {}
        """Of the events in the lane, and at its entrance, that have one."""
        self._lines: dict[int, _Line] = {}
        self._failing: dict[int, _Line] = {}
        """Those of which the first backs off."""
        self._under_way: set[Delivery] = set()
        self._behind = 0
        """Events behind those that back off."""
        self._told = float("-inf")

    @property
    def held(self) -> int:
        """How many keys have events that wait for one that backs off."""
        return sum(self._holds_others(key, line) for key, line in self._failing.items())

    def come(self, delivery: Delivery) -> bool:
        """Take in an event of a key; tell whether it may go. Else it waits behind others of its key."""
        key = self.keys[delivery]
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = _Line(OrderedDict({delivery: None}))
            return True
        line.events[delivery] = None
        self._waiting.come_behind(delivery)
        if line.failed_at is not None:
            self._behind += 1
            self._hold_few(key, line)
        return False

    def began(self, delivery: Delivery) -> None:
        """Hear that an attempt at an event begins."""
        if delivery in self.keys:
            self._under_way.add(delivery)

    def ended(self, delivery: Delivery) -> None:
        """Hear how the attempt ended: the event has settled, waits for another one, or for its burial."""
        if delivery not in self._under_way:
            return
        self._under_way.remove(delivery)
        if delivery.outcome is not None:
            self._leave(delivery)
            return
        key = self.keys[delivery]
        line = self._lines[key]
        if delivery in self._waiting:
            if line.failed_at is None:
                line.failed_at = monotonic()
                self._failing[key] = line
                self._behind += line.behind
            self._tell(delivery, key, line, line.failed_at)
            self._hold_few(key, line)

    def left(self, delivery: Delivery) -> None:
        """Hear that an event has settled. One in an attempt keeps its place to the end of that."""
        if delivery in self.keys and delivery not in self._under_way:
            self._leave(delivery)

    def park(self, delivery: Delivery) -> None:
        """Park an event that is to wait no longer in memory, with all of its key that are not stored."""
        key = self.keys[delivery]
        line = self._lines.get(key)
        if line is None:  # it has just come
            self._park(delivery, key)
            return
        if delivery not in line.events:
            line.events[delivery] = None
            self._behind += line.failed_at is not None
            self._waiting.come_behind(delivery)
        self._store(key, line)

    def has_room(self, key: int) -> bool:
        """Tell whether one more event of a key should come back from the store, as others do."""
        line = self._lines.get(key)
        return line is None or (len(line.events) < _TOGETHER and line.failed_at is None)

    def waits_for(self, delivery: Delivery) -> str | None:
        """Say what an event in the lane waits for, for a person; None if it is nothing of its key."""
        line = self._lines.get(self.keys.get(delivery, -1))
        first = delivery if line is None else next(iter(line.events))
        return None if first is delivery else f"it waits for one of its key (`order_by`): {first.event.id}"

    def telling(self, delivery: Delivery, letter: DeadLetter) -> DeadLetter:
        """Return `letter` with the key, and with what becomes of the events that follow."""
        key = self.keys.get(delivery)
        if key is None:
            return letter
        behind = len(self._lines[key].events) - 1
        more = " and more in the store" if self._parking.is_aside(key) else ""
        told = f"{behind} waited behind it{more}" if behind or more else "none waited behind it"
        return replace(letter, order_key=key, detail=f"{letter.detail} (its key goes on without it: {told})")

    def overtaking(self) -> Iterator[Delivery]:
        """Give those that would overtake others, if what came from the store went back there: the last first.

        What is in an attempt does not.
        """
        for line in list(self._lines.values()):
            goes_back = False
            would: list[Delivery] = []
            for delivery in line.events:
                if self._parking.owns(delivery):
                    goes_back = goes_back or delivery not in self._under_way
                elif goes_back:
                    would.append(delivery)
            yield from reversed(would)

    def _leave(self, delivery: Delivery) -> None:
        key = self.keys.pop(delivery)
        line = self._lines.get(key)
        if line is None or delivery not in line.events:  # at the entrance, or on its way into the store
            return
        was_first = next(iter(line.events)) is delivery
        self._behind -= line.behind
        del line.events[delivery]
        if was_first:
            self._fails_no_more(key, line)
        self._behind += line.behind
        if not line.events:
            self._end(key)
        elif was_first and line.to_park:
            self._store(key, line)
        elif was_first:
            self._go_on(line)

    def _fails_no_more(self, key: int, line: _Line) -> None:
        line.failed_at = None
        self._failing.pop(key, None)

    def _go_on(self, line: _Line) -> None:
        self._let_go(next(iter(line.events)))

    def _end(self, key: int) -> None:
        del self._lines[key]
        self._parking.bring(key)

    def _hold_few(self, key: int, line: _Line) -> None:
        """Send what is behind an event that backs off to the store, if it is stored already or too much."""
        second = next(islice(line.events, 1, 2), None)
        stored = second is not None and self._parking.owns(second)
        if not (line.to_park or stored or self._behind > self._most_behind) or not self._parks():
            return
        if not self._first_can_be_stored(line):
            line.to_park = True
            return
        self._parking.set_aside(key)
        first = next(iter(line.events))
        for delivery in reversed(list(line.events)):
            if delivery is not first and self._parking.owns(delivery):
                delivery.settle(Outcome.RELEASED)  # it stays in the store
        self._store(key, line)

    def _store(self, key: int, line: _Line) -> None:
        """Park all of a key that are in memory alone, in their order; later, if the first can't be now."""
        if not self._first_can_be_stored(line):
            line.to_park = True
            return
        line.to_park = False
        fresh = [delivery for delivery in line.events if not self._parking.owns(delivery)]
        first_goes = fresh[:1] == list(islice(line.events, 1))
        self._behind -= line.behind
        for delivery in fresh:
            del line.events[delivery]
        if first_goes:
            self._fails_no_more(key, line)
        self._behind += line.behind
        for delivery in fresh:
            self._park(delivery, key)
        if not line.events:
            self._end(key)
        elif self._waiting.is_behind(next(iter(line.events))):  # it came back from the store behind another
            self._go_on(line)

    def _holds_others(self, key: int, line: _Line) -> bool:
        return len(line.events) > 1 or self._parking.is_aside(key)

    def _tell(self, first: Delivery, key: int, line: _Line, failed_at: float) -> None:
        now = monotonic()
        if now - max(failed_at, self._told) >= _TELL_SECONDS and self._holds_others(key, line):
            self._told = now
            _log.warning(
                "events wait for one of their key that fails",
                service=self._service,
                id=first.event.id,
                failed_for_seconds=round(now - failed_at),
                keys_held=self.held,
            )

    def _first_can_be_stored(self, line: _Line) -> bool:
        """Tell whether the first is stored, or not in an attempt, nor on its way to the dead letters."""
        first = next(iter(line.events))
        return self._parking.owns(first) or first in self._waiting
