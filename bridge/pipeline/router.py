"""Which lanes an event goes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TypeVar

import structlog

from bridge.core import errors
from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal, NoJournal
from bridge.core.ports import DeadLetter, Keeper
from bridge.pipeline.codings import Coding, Undecodable
from bridge.pipeline.dead import bury
from bridge.pipeline.expression import NoMatch, Unroutable
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.pipeline.merging import Place
from bridge.pipeline.reached import Reached
from bridge.pipeline.routes import REASONS, Opened, Route, RouteConfig, Routes, presented
from bridge.pipeline.windows import Windows
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import SourceMetrics

_TURN = 0.005
"""Seconds of routing after which the other tasks of the process get their turn."""
_LOOK = 64
"""Events that go straight into their lane between two looks at the clock: a millisecond of them."""
_LONG = 0.02
"""Seconds of one evaluation after which the others get as long as it took: they need several turns to answer
one request."""
_SLOW = 0.001
"""Seconds that an evaluation may take, of which the operator is not told."""

_Done = TypeVar("_Done")

_log = structlog.get_logger(__name__)


class Router:
    """The routes of one source."""

    def __init__(
        self,
        routes: Iterable[RouteConfig],
        lanes: Mapping[str, Lane],
        keeper: Keeper,
        metrics: SourceMetrics,
        intake: Intake,
        windows: Windows | None = None,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        """Route what comes of one source, by its `intake`; `windows` keep what routes send together."""
        self._routes = Routes(routes)
        self._windows = windows
        self._keeper = keeper
        self._journal = journal
        self._tells_why = not isinstance(journal, NoJournal) or _log.is_enabled_for(logging.DEBUG)
        """Whether anybody reads why an event was filtered."""
        if self._tells_why:
            for route in self._routes.routes:
                route.compile_parts()
        self._metrics = metrics
        reachable = {lane for route in self._routes.routes for lane in route.reachable}
        self._intake = intake
        self._reached = Reached({key: lanes[key] for key in reachable}, intake)
        self.make_way = self._reached.make_way
        only = self._routes.routes[0] if len(self._routes.routes) == 1 else None
        self._straight_to = None if only is None or only.looks else lanes[only.to]
        """The lane of every event that can be read, where it is the same whatever is in them."""
        self._events = 0
        self._straight = 0
        """Events that went straight into their lane since the clock was looked at."""
        self._turn_began = perf_counter()

    async def route_all(self, deliveries: Sequence[Delivery]) -> None:
        """Route `deliveries`, in their order, as `route` does: in runs, where nothing has to be looked at."""
        routed = 0
        while routed < len(deliveries):
            taken = 0
            if self._straight_to is not None:
                taken = self._straight_to.take_all(deliveries[routed : routed + _LOOK])
            if taken:
                await self._went_straight(taken)
            else:
                await self.route(deliveries[routed])
            routed += taken or 1

    async def route(self, delivery: Delivery) -> None:
        """Put `delivery` into its lanes, waiting while one is full; settle it when it has none.

        An event goes into a lane once, however many routes lead there. A route that can't be evaluated
        makes a dead letter of its own and does not stop the others. An event that fails in a way nobody
        foresaw becomes a dead letter too: it would come again and again, and end its source each time.
        After each 5 ms of routing the other tasks have their turn.
        """
        try:
            # It may have been released while earlier ones of its batch waited for room.
            if delivery.outcome is None:
                if self._straight_to is not None and self._straight_to.take_all((delivery,)):
                    await self._went_straight(1)
                else:
                    await self._route(delivery)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        # A panic of the CEL evaluator, which is Rust's, is no Exception.
        except BaseException as error:  # noqa: BLE001
            _log.exception("an event can't be routed", source=self._metrics.key)
            detail = f"defect in routing: {excerpt(errors.reason(error))}"
            letter = DeadLetter(event=delivery.event, service="", cause="route", detail=detail)
            await bury(self._keeper, self._journal, delivery, letter)

    async def _went_straight(self, events: int) -> None:
        self._straight += events
        if self._straight >= _LOOK:
            self._straight = 0
            if perf_counter() - self._turn_began > _TURN:
                await asyncio.sleep(0)
                self._turn_began = perf_counter()

    async def _route(self, delivery: Delivery) -> None:
        event = delivery.event
        lanes: dict[str, tuple[Route, Place | int | None]] = {}
        dead: list[DeadLetter] = []
        opened: dict[Sequence[Coding], Opened] = {}
        findings: dict[Route, NoMatch] = {}
        reason = "no_match"
        if delivery.fault is not None:
            dead.append(DeadLetter(event=event, service="", cause="unreadable", detail=delivery.fault))
        else:
            self._events += 1
            view = self._routes.view(event)
            began = perf_counter()
            for route in self._routes.routes:
                if route.decode and route.decode not in opened:
                    opened[route.decode] = await self._in_turns(self._routes.opened(event, route.decode))
                    began = perf_counter()
                try:
                    read = opened[route.decode].view if route.decode else view
                    lane = route.lane_of(opened[route.decode]) if route.decode else route.lane(view)
                    if lane is not None and lane not in lanes:
                        lanes[lane] = route, route.place(event, read)
                except NoMatch as finding:
                    reason = max(reason, str(finding), key=REASONS.index)
                    findings[route] = finding
                except (Unroutable, Undecodable) as finding:
                    dead.append(route.letter(event, finding))
                now = perf_counter()
                if now - began > _SLOW:
                    route.was_slow(now - began, self._events, self._metrics.key)
                if now - self._turn_began > _TURN:
                    await asyncio.sleep(now - began if now - began > _LONG else 0)
                    now = self._turn_began = perf_counter()
                began = now
        if len(lanes) == 1 and not dead:
            ((lane, (only, place)),) = lanes.items()
            if not only.recodes:
                if not self._enters(delivery, lane, place):
                    await self._reached.put(delivery, lane, place)
                return
        if not (lanes or dead):
            detail = ""
            if self._tells_why:
                detail = await self._in_turns(self._routes.why_not(view, opened, findings))
            self._filter(delivery, reason, detail)
            return
        given = await self._present(event, lanes, opened, dead)
        await self._hand_over(delivery, given, dead)

    async def _present(
        self,
        event: Event,
        lanes: Mapping[str, tuple[Route, Place | int | None]],
        opened: Mapping[Sequence[Coding], Opened],
        dead: list[DeadLetter],
    ) -> list[tuple[str, Place | int | None, Event]]:
        """Return what each lane gets, with its window before that, or its key there.

        What can't be encoded goes to `dead`.
        """
        given = []
        for lane, (route, place) in lanes.items():
            read = opened[route.decode].event if route.decode else event
            try:
                given.append((lane, place, await self._in_turns(presented(read, route.encode))))
            except Undecodable as finding:
                dead.append(route.letter(event, finding))
        return given

    async def _in_turns(self, work: Generator[None, None, _Done]) -> _Done:
        """Do `work` piece by piece, with a turn for the other tasks after each 5 ms."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return] # what the generator returns
            if perf_counter() - self._turn_began > _TURN:
                await asyncio.sleep(0)
                self._turn_began = perf_counter()

    async def _hand_over(
        self,
        delivery: Delivery,
        given: Sequence[tuple[str, Place | int | None, Event]],
        dead: Sequence[DeadLetter],
    ) -> None:
        if more := sum(len(each.data) for _, _, each in given if each is not delivery.event):
            while self._intake.crowded:
                self._reached.make_way()
                await self._intake.settled()
            self._intake.add(delivery, more)
        if delivery.outcome is not None:  # released while others had their turn
            return
        parts = delivery.split([delivery.event] * len(dead) + [each for _, _, each in given])
        for part, letter in zip(parts, dead, strict=False):
            await bury(self._keeper, self._journal, part, letter)
        for part, (lane, place, _) in zip(parts[len(dead) :], given, strict=True):
            if not self._enters(part, lane, place):
                await self._reached.put(part, lane, place)

    def _filter(self, delivery: Delivery, reason: str, detail: str) -> None:
        if delivery.outcome is not None:  # released while others had their turn
            return
        event = delivery.event
        self._metrics.filtered(reason)
        self._journal.note("filtered", event, since=delivery.since, cause=reason, detail=detail)
        _log.debug("event filtered", source=self._metrics.key, id=event.id, reason=reason, detail=detail)
        delivery.settle(Outcome.FILTERED)

    def _enters(self, delivery: Delivery, key: str, place: Place | int | None) -> bool:
        """Put `delivery` into its window, or into its lane if it need not wait; tell whether it is in."""
        if isinstance(place, Place):
            assert self._windows is not None  # noqa: S101 - a router whose routes merge is given them
            self._windows.put(delivery, key, place, self._metrics.filtered)
            return True
        return self._reached.take(delivery, key, place)
