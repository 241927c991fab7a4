"""The events of all routes that wait on disk to be sent together, and their way into a lane."""

from __future__ import annotations

import asyncio
from asyncio import to_thread
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.core.ports import DeadLetter
from bridge.core.windows import (
    INCOMPLETE,
    ROUTE_GONE,
    SALVAGED,
    Closed,
    Joined,
    Member,
    Name,
    Part,
    Policy,
    WindowKeeper,
)
from bridge.pipeline.codings import Undecodable
from bridge.pipeline.dead import note_dead
from bridge.pipeline.merged import merged
from bridge.pipeline.merging import Manner, Merging, Place
from bridge.pipeline.retry import STORE_BACKOFF
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import Metrics

_TOGETHER = 500
_TOGETHER_BYTES = 16 * 2**20
"""Events, and bytes of them, that are written at once; one is always."""
_SENT_AT_ONCE = 100
"""Windows of which an event each is made in one transaction."""
_LONGEST_SLEEP = 3600.0
"""Seconds after which it is looked again, though nothing is due."""
_MOST_UNKNOWN = 96 * 2**10
"""Bytes of an event for a service that is not in the configuration any more."""

_NOTED_TOGETHER, _NOTED_PAUSE = 1000, 0.01
"""Lines of the journal in one run, and the seconds before the next: of more at once some would be lost."""

_TOLD = {
    INCOMPLETE: "a window was not complete in time",
    ROUTE_GONE: "a window was sent as it was: the configuration has no such route any more",
    SALVAGED: "members were sent as they were: what their window was is lost in a damaged store",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recipient:
    """What is to be known of a service that gets events together."""

    event_bytes: int
    """How many bytes an event may have, encoded."""
    fits: Callable[[Event], bool]
    """Whether it takes an event of that size."""
    reads_all_records: bool = False
    """Whether it reads all records of an S3 notification, not only the first."""


class _Coming(NamedTuple):
    member: Member
    filtered: Callable[[str], None]


class Windows:
    """Keeps events in their windows, and parks what a window has become for its service's lane.

    An event is settled PARKED once it is on disk, and takes no slot from then on. What a window becomes is on
    disk before its first attempt, as one parked event of the lane, in the transaction that takes its members
    away. There is one timer for all windows.
    """

    def __init__(
        self,
        keeper: WindowKeeper,
        recipients: Mapping[str, Recipient],
        routes: Mapping[tuple[str, str, str], Merging],
        metrics: Metrics,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        """Serve `routes`, by source's identity, service and name, to `recipients` by the service's key."""
        self._keeper = keeper
        self._recipients = recipients
        self._policies: dict[tuple[str, str, str], Policy] = {
            name: merging.policy(recipients[name[1]].event_bytes) for name, merging in routes.items()
        }
        self._metrics = metrics
        self._journal = journal
        self._coming: dict[Delivery, _Coming] = {}
        """On their way to the disk; slots bound how many."""
        self._some = asyncio.Event()
        self._due = inf
        """When the next window closes, by the keeper's clock."""
        self._sooner = asyncio.Event()
        self._unheard = {name[0] for name in routes}
        """Sources, by identity, that are not open: that nothing comes of them is no quiet."""
        self._heard_again: set[str] = set()
        """Those of them that are open since."""

    def listens(self, source: str, on: bool) -> None:
        """Hear that the source with that identity is open, or is no more."""
        if not on:
            self._heard_again.discard(source)
            self._unheard.add(source)
        elif source in self._unheard:  # of whose events some are sent together
            self._heard_again.add(source)
            self._sooner.set()

    def put(self, delivery: Delivery, service: str, place: Place, filtered: Callable[[str], None]) -> None:
        """Bring `delivery` into its window soon, and settle it then; `filtered` hears why it joins none."""
        event = delivery.event
        name = Name(event.source, service, place.route, place.key)
        member = Member(event, name, self._policies[name[:3]], place.is_marker)
        self._coming[delivery] = _Coming(member, filtered)
        delivery.watch(self._left)
        self._some.set()

    def _left(self, delivery: Delivery, _outcome: Outcome) -> None:
        self._coming.pop(delivery, None)

    async def run(self) -> None:
        """Keep, close and send until cancelled."""
        failures = 0
        while True:
            try:
                self._due = await self._keeper.begin(self._policy_of)
            except StoreError as error:
                failures += 1
                _log.error("windows can't be read", error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
            else:
                break
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._join(), name="windows: members")
            tasks.create_task(self._send(), name="windows: sending")

    def _policy_of(self, name: Name) -> Policy | None:
        return self._policies.get(name[:3])

    # Coming

    async def _join(self) -> None:
        failures = 0
        while True:
            await self._some.wait()
            chunk = self._chunk(1 if failures else _TOGETHER)
            if not chunk:
                self._some.clear()
                continue
            try:
                results, due = await self._keeper.join([coming.member for _, coming in chunk])
            except StoreError as error:
                failures += 1
                _log.error("events can't be kept for their window: their source waits", error=str(error))
                for delivery, coming in chunk:  # it may be too large for what room there is: others first
                    if self._coming.pop(delivery, None) is not None:
                        self._coming[delivery] = coming
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                continue
            failures = 0
            self._is_due(due)
            for (delivery, coming), result in zip(chunk, results, strict=True):
                self._joined(delivery, coming, result)

    def _chunk(self, most: int) -> list[tuple[Delivery, _Coming]]:
        """Return those that came first, as many as are written at once."""
        chunk, size = [], 0
        for delivery, coming in self._coming.items():
            chunk.append((delivery, coming))
            size += delivery.event.size
            if len(chunk) >= most or size >= _TOGETHER_BYTES:
                break
        return chunk

    def _joined(self, delivery: Delivery, coming: _Coming, result: Joined) -> None:
        event, name, since = delivery.event, coming.member.window, delivery.since
        if result is Joined.LATE:
            self._metrics.window_members_late.labels(name.service).inc()
        if result is not Joined.REPEATED:
            how = "" if result is Joined.NEW else result.value
            self._journal.note(
                "waits", event, name.service, since=since, cause=how, detail=name.key, route=name.route
            )
        elif delivery.outcome is None:
            coming.filtered("merged")
            self._journal.note("filtered", event, name.service, since=since, cause="merged", route=name.route)
            delivery.settle(Outcome.FILTERED)
        delivery.settle(Outcome.PARKED)

    def _is_due(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._sooner.set()

    # Leaving

    async def _send(self) -> None:
        failures = 0
        while True:
            await self._next_due()
            try:
                if heard := frozenset(self._heard_again):
                    await self._keeper.begin(self._policy_of, heard)
                    self._unheard -= heard & self._heard_again  # unless it is lost again
                    self._heard_again -= heard
                closed, self._due = await self._keeper.close(_SENT_AT_ONCE, self._policy_of, self._unheard)
                if not closed:
                    continue
                members = await self._keeper.members(closed)
                parts = await to_thread(self._parts, closed, members)
                gone, forgotten = await self._keeper.send(parts)
                await self._note(parts, members)
            except StoreError as error:
                failures += 1
                _log.error("windows can't be sent", error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
            else:
                failures = 0
                self._tell([window for window in closed if window.number in gone], forgotten)

    async def _next_due(self) -> None:
        """Return when a window is due, or a source is heard again."""
        while (pause := self._due - self._keeper.now()) > 0 and not self._heard_again:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, _LONGEST_SLEEP)):
                    await self._sooner.wait()

    def _parts(
        self, closed: Sequence[Closed], members: Mapping[int, Sequence[tuple[int, Event]]]
    ) -> list[Part]:
        """Make one event of each window whose members are there. In another thread: it may take long."""
        return [self._part(window, members[window.number]) for window in closed if window.number in members]

    def _part(self, window: Closed, members: Sequence[tuple[int, Event]]) -> Part:
        try:
            manner = Manner.read(window.manner)
        except (ValueError, TypeError):  # it was kept in a store that is damaged
            manner = Manner()
        if not members:
            return Part(window, (), None, manner.remember)
        events = [event for _, event in members]
        name = window.name
        recipient = self._recipients.get(name.service, _UNKNOWN)
        sent: Event | DeadLetter
        try:
            count, event = merged(
                events, name, manner, records=recipient.reads_all_records, fits=recipient.fits
            )
        except Undecodable as finding:
            count, sent = 1, _letter(events[0], name, finding.cause, str(finding))
        except Exception as error:  # noqa: BLE001 - it would come again and again, and end the process each time
            _log.exception("a window can't be sent", service=name.service, key=excerpt(name.key))
            count = 1
            sent = _letter(events[0], name, "defect", f"defect in merging: {type(error).__name__}")
        else:
            sent = event
            if window.reason == INCOMPLETE and manner.incomplete != "send":
                detail = f"{window.members} events were there when its time was over, and not all"
                sent = _letter(event, name, INCOMPLETE, detail)
        return Part(window, [number for number, _ in members[:count]], sent, manner.remember)

    async def _note(self, parts: Sequence[Part], members: Mapping[int, Sequence[tuple[int, Event]]]) -> None:
        """Write down what each member was sent in."""
        noted = 0
        for part in parts:
            sent = part.sent.event if isinstance(part.sent, DeadLetter) else part.sent
            if sent is None:
                continue
            name = part.window.name
            for _, event in members[part.window.number][: len(part.numbers)]:
                self._journal.note("sent", event, name.service, route=name.route, into=sent.id)
                noted += 1
                if noted % _NOTED_TOGETHER == 0:
                    await asyncio.sleep(_NOTED_PAUSE)
            if isinstance(part.sent, DeadLetter):
                note_dead(self._journal, part.sent)

    def _tell(self, gone: Sequence[Closed], forgotten: int) -> None:
        for window in gone:
            self._metrics.windows_closed.labels(window.name.service, window.reason).inc()
            if window.reason in _TOLD:
                _log.warning(
                    _TOLD[window.reason],
                    service=window.name.service,
                    key=excerpt(window.name.key),
                    members=window.members,
                )
        if forgotten:
            self._metrics.members_forgotten.inc(forgotten)
            _log.warning(
                "members of windows are forgotten before `merge.remember`: one that comes again is sent "
                "again; `store.max_bytes` has no more room for them",
                members=forgotten,
            )


def _letter(event: Event, name: Name, cause: str, detail: str) -> DeadLetter:
    return DeadLetter(event=event, service=name.service, cause=cause, detail=detail)


_UNKNOWN = Recipient(_MOST_UNKNOWN, lambda event: len(event.data) <= _MOST_UNKNOWN)
