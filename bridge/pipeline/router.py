"""Which lanes an event goes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import NamedTuple, TypeVar

import structlog
from pydantic import Field

from bridge.core import errors
from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal, NoJournal
from bridge.core.ports import NO_LANE, DeadLetter, Keeper
from bridge.pipeline.codings import Coding, Codings, Undecodable, at_once, decode, encode
from bridge.pipeline.context import View
from bridge.pipeline.dead import bury
from bridge.pipeline.expression import Expression, NoMatch, Unroutable
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.pipeline.merging import MergesConfig, Merging, Place
from bridge.pipeline.order import order_key
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
_FEW, _OF = 10, 1_000
"""More slow evaluations than this, of so many events, are more than one in a hundred."""

_Done = TypeVar("_Done")

_log = structlog.get_logger(__name__)


class RouteConfig(MergesConfig):
    """From a source, when an expression holds, to a service."""

    from_: str = Field(alias="from")
    """A key of `sources`."""
    when: str | None = None
    """CEL; every event when not given."""
    to: str
    """A key of `services`; with `allow`, a CEL expression that gives one."""
    allow: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The services that `to` may choose from."""
    decode: Codings = ()
    """What is undone of the event's body, in this order, before `when` and `to` look at it."""
    encode: Codings = ()
    """What is done to the body that the service gets, in this order."""
    order_by: str | None = None
    """CEL that gives a key: the events of one key go to their service one after another, in the order they
    came. One without a key (null, an empty text, a member that is missing) goes in no order."""

    @property
    def reachable(self) -> frozenset[str]:
        """The services that an event may be put to by this route."""
        return frozenset(self.allow or (self.to,))


class _Opened(NamedTuple):
    """An event as a route reads it."""

    event: Event
    view: View
    fault: Undecodable | None = None
    """Why it can't be decoded; the event is as it came then, and its view without data."""


class _Route:
    """One route with its expressions compiled."""

    def __init__(self, config: RouteConfig) -> None:
        self.to = config.to
        self.when = config.when
        self.service = config.to if config.allow is None else ""
        self.decode = config.decode
        self.encode = () if config.merges else config.encode
        """What is done to each event by itself: those that are sent together are encoded together."""
        self.recodes = bool(config.decode or self.encode)
        self._when = None if config.when is None else Expression(config.when)
        self._to = None if config.allow is None else Expression(config.to)
        self._allow = self.reachable = config.reachable
        self.merging = Merging(config, config.encode) if config.merges else None
        """What it does besides with an event that it wants; None: the event goes into its lane as it is."""
        self._order_by = None if config.order_by is None else Expression(config.order_by)
        self._no_key_told = False
        self.expressions = [one for one in (self._when, self._to, self._order_by) if one is not None]
        if self.merging is not None:
            self.expressions += self.merging.expressions
            self.service = ""  # a dead letter that is replayed goes round the routes, not into the lane alone
        self.looks = bool(self.expressions or self.recodes or self.merging)
        """Whether it reads or changes anything of an event."""
        self._slow = 0
        self._slow_since = 0
        self._slowness_told = False

    def lane_of(self, opened: _Opened) -> str | None:
        """Name the lane of an event; None when `when` is false. Raise NoMatch, Unroutable or Undecodable.

        One that can't be decoded is not wanted only where `when` can say so without its data.
        """
        if opened.fault is None:
            return self.lane(opened.view)
        try:
            if self.lane(opened.view) is None:
                return None
        except Unroutable:
            pass
        raise opened.fault

    def lane(self, view: View) -> str | None:
        """Name the lane of the event in `view`; None when `when` is false. Raise NoMatch or Unroutable."""
        if self._when is not None and not (self.merging is not None and self.merging.is_marker(view)):
            matched = self._when.evaluate(view)
            if matched is False:
                return None
            if matched is not True:
                raise Unroutable(f"`when` gave {type(matched).__name__}, expected true or false")
        if self._to is None:
            return self.to
        chosen = self._to.evaluate(view)
        if not isinstance(chosen, str):
            raise Unroutable(f"`to` gave {type(chosen).__name__}, expected the name of a service")
        if chosen not in self._allow:
            raise NoMatch("not_allowed", f"`{self._to.source}` gave {excerpt(chosen)!r}")
        return chosen

    def place(self, event: Event, view: View) -> Place | int | None:
        """Return the window that an event goes into, or its key in its lane. Raise NoMatch or Unroutable."""
        if self.merging is not None:
            return self.merging.place(event, view)
        return None if self._order_by is None else self._order_key(event, view, self._order_by)

    def _order_key(self, event: Event, view: View, order_by: Expression) -> int | None:
        try:
            return order_key(event.source, order_by.source, order_by.evaluate(view))
        except NoMatch:
            if not self._no_key_told:
                self._no_key_told = True
                _log.warning(
                    "an event has no member that `order_by` reads: such events go in no order",
                    source=event.source,
                    id=event.id,
                    order_by=order_by.source,
                )
            return None
        except TypeError as error:
            raise Unroutable(str(error)) from None

    def compile_parts(self) -> None:
        """Compile now what `why_not` looks at."""
        if self._when is not None:
            self._when.compile_parts()

    def why_not(self, view: View, finding: NoMatch | None) -> str:
        """Say what in this route does not want the event in `view`, of which `finding` was raised, if any."""
        part = ""
        if self._when is not None and not self._slowness_told:  # what is slow is not evaluated again
            part = self._when.part_not_true(view)
        if not part and finding is not None:
            part = finding.detail
        return f"{self.to}: {part or f'`{self.when}` does not hold'}"

    def letter(self, event: Event, finding: Unroutable | Undecodable) -> DeadLetter:
        """Return the dead letter of an event that this route can't be evaluated for, or can't decode.

        The latter has no service: replayed it goes round the routes, which may not decode it by then.
        """
        service = NO_LANE if isinstance(finding, Undecodable) else self.service
        return DeadLetter(event=event, service=service, cause=finding.cause, detail=str(finding))

    def was_slow(self, seconds: float, events: int, source: str) -> None:
        """Warn, once, when one evaluation in a hundred is slow: of the event number `events` it was."""
        if events - self._slow_since >= _OF:
            self._slow_since, self._slow = events, 0
        self._slow += 1
        if self._slow > _FEW and not self._slowness_told:
            self._slowness_told = True
            _log.warning(
                "a route is slow: nothing else goes on while it is evaluated",
                source=source,
                when=self.when,
                to=self.to,
                milliseconds=round(seconds * 1000, 1),
            )


class _Routes:
    """Routes, and what they read of an event."""

    def __init__(self, configs: Iterable[RouteConfig]) -> None:
        self.routes = [_Route(config) for config in configs]
        expressions = [one for route in self.routes for one in route.expressions]
        self._names = frozenset(name for one in expressions for name in one.names)
        reads = [one.reads for one in expressions]
        self._reads = None if None in reads else frozenset(way for some in reads for way in some or ())
        self._matches = any(one.matches for one in expressions)
        self._blank = View(Event(id="", source="", type="", data=b""), frozenset(), None, self._matches)

    def view(self, event: Event) -> View:
        """Show `event` to all of the routes."""
        return View(event, self._names, self._reads, self._matches) if self._names else self._blank

    def opened(self, event: Event, codings: Sequence[Coding]) -> Generator[None, None, _Opened]:
        """Decode the body of `event` and show it, in pieces."""
        try:
            body = yield from decode(event.data, codings)
        except Undecodable as fault:
            dataless = View(event, self._names - {"data"}, None, self._matches)
            return _Opened(event, dataless, fault)
        event = event.replace(data=body)
        return _Opened(event, self.view(event))


def _presented(event: Event, codings: Sequence[Coding]) -> Generator[None, None, Event]:
    """Encode the body of `event`, in pieces. Raise Undecodable where it is too long for it."""
    return event.replace(data=(yield from encode(event.data, codings))) if codings else event


@dataclass(frozen=True, slots=True)
class Decision:
    """What one route makes of one event."""

    route: RouteConfig
    service: str | None
    """The service it is put to; None where there is none."""
    reason: str = ""
    """Why there is none: `no_match`, `missing_key` or `not_allowed`. Or `route`, `not_json` or `undecodable`:
    a dead letter with that cause, since the route can't be evaluated."""
    detail: str = ""
    """Of a dead letter: what went wrong."""
    event: Event | None = None
    """As the service gets it, decoded and encoded; None where there is none."""
    place: Place | None = None
    """The window that it goes into, where it is sent together with others."""
    ordered: bool = False
    """Whether it goes behind those of its key that came before."""

    @property
    def dead(self) -> bool:
        """Whether the event becomes a dead letter by this route."""
        return self.reason not in ("", *_REASONS)


def decide(routes: Iterable[RouteConfig], event: Event) -> list[Decision]:
    """Tell what each of `routes` makes of `event`, as a Router does, for a person who asks why."""
    decisions = []
    for config in routes:
        routes_of_one = _Routes([config])
        (route,) = routes_of_one.routes
        try:
            opened = at_once(routes_of_one.opened(event, route.decode))
            service, presented = route.lane_of(opened), None
            place: Place | int | None = None
            if service is not None:
                place = route.place(event, opened.view)
                presented = at_once(_presented(opened.event, route.encode))
        except NoMatch as finding:
            decisions.append(Decision(config, None, str(finding)))
        except (Unroutable, Undecodable) as finding:
            decisions.append(Decision(config, None, finding.cause, str(finding)))
        else:
            reason = "no_match" if service is None else ""
            window, ordered = (place, False) if isinstance(place, Place) else (None, place is not None)
            decisions.append(
                Decision(config, service, reason, event=presented, place=window, ordered=ordered)
            )
    return decisions


def matcher(when: str) -> Callable[[Event], bool]:
    """Make a test of events from a condition as in a route; an event it can't be evaluated for fails it."""
    routes = _Routes([RouteConfig.model_validate({"from": "", "when": when, "to": ""})])

    def matches(event: Event) -> bool:
        try:
            return routes.routes[0].lane(routes.view(event)) is not None
        except (NoMatch, Unroutable):
            return False

    return matches


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
        self._routes = _Routes(routes)
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
        self._reached = {key: lanes[key] for key in reachable}
        self._share = max(1, intake.most // max(1, len(reachable)))
        """How many of the source's slots one lane may take while another of its lanes starves."""
        self._taken = dict.fromkeys(reachable, 0)
        self._leaves = {key: partial(self._left, key) for key in reachable}
        only = self._routes.routes[0] if len(self._routes.routes) == 1 else None
        self._straight_to = None if only is None or only.looks else self._reached[only.to]
        """The lane of every event that can be read, where it is the same whatever is in them."""
        self._starving: set[str] = set()
        self._putting = 0
        """Events on their way into a lane: one of the source's, and one of those routed again."""
        if len(reachable) > 1:  # holding the source back for a lane that is alone starves no other
            # More than fits into each of them would be got only by parking what is of the others.
            enough = min(self._share, *(lane.queue for lane in self._reached.values())) // 4
            for key, lane in self._reached.items():
                lane.when_starving(partial(self._starves, key), enough)
        self._events = 0
        self._straight = 0
        """Events that went straight into their lane since the clock was looked at."""
        self._turn_began = perf_counter()

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
                if not self._goes_straight(delivery):
                    await self._route(delivery)
                elif self._straight >= _LOOK:
                    self._straight = 0
                    if perf_counter() - self._turn_began > _TURN:
                        await asyncio.sleep(0)
                        self._turn_began = perf_counter()
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        # A panic of the CEL evaluator, which is Rust's, is no Exception.
        except BaseException as error:  # noqa: BLE001
            _log.exception("an event can't be routed", source=self._metrics.key)
            detail = f"defect in routing: {excerpt(errors.reason(error))}"
            letter = DeadLetter(event=delivery.event, service="", cause="route", detail=detail)
            await bury(self._keeper, self._journal, delivery, letter)

    def _goes_straight(self, delivery: Delivery) -> bool:
        """Put `delivery` into its lane where nothing has to be looked at, or waited for; tell if it is in."""
        lane = self._straight_to
        if lane is None or delivery.fault is not None or not lane.take(delivery):
            return False
        self._straight += 1
        return True

    async def _route(self, delivery: Delivery) -> None:
        event = delivery.event
        lanes: dict[str, tuple[_Route, Place | int | None]] = {}
        dead: list[DeadLetter] = []
        opened: dict[Sequence[Coding], _Opened] = {}
        findings: dict[_Route, NoMatch] = {}
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
                    reason = max(reason, str(finding), key=_REASONS.index)
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
                    await self._put(delivery, lane, place)
                return
        if not (lanes or dead):
            detail = ""
            if self._tells_why:
                detail = await self._in_turns(self._why_not(view, opened, findings))
            self._filter(delivery, reason, detail)
            return
        given = await self._present(event, lanes, opened, dead)
        await self._hand_over(delivery, given, dead)

    async def _present(
        self,
        event: Event,
        lanes: Mapping[str, tuple[_Route, Place | int | None]],
        opened: Mapping[Sequence[Coding], _Opened],
        dead: list[DeadLetter],
    ) -> list[tuple[str, Place | int | None, Event]]:
        """Return what each lane gets, with its window before that, or its key there.

        What can't be encoded goes to `dead`.
        """
        given = []
        for lane, (route, place) in lanes.items():
            read = opened[route.decode].event if route.decode else event
            try:
                given.append((lane, place, await self._in_turns(_presented(read, route.encode))))
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
                self.make_way()
                await self._intake.settled()
            self._intake.add(delivery, more)
        if delivery.outcome is not None:  # released while others had their turn
            return
        parts = delivery.split([delivery.event] * len(dead) + [each for _, _, each in given])
        for part, letter in zip(parts, dead, strict=False):
            await bury(self._keeper, self._journal, part, letter)
        for part, (lane, place, _) in zip(parts[len(dead) :], given, strict=True):
            if not self._enters(part, lane, place):
                await self._put(part, lane, place)

    def _why_not(
        self, view: View, opened: Mapping[Sequence[Coding], _Opened], findings: Mapping[_Route, NoMatch]
    ) -> Generator[None, None, str]:
        """Say of each route what in it does not want the event, in pieces."""
        told = []
        for route in self._routes.routes:
            read = opened[route.decode].view if route.decode else view
            told.append(route.why_not(read, findings.get(route)))
            yield
        return "; ".join(told)

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
        if len(self._reached) > 1:
            self._taken[key] += 1
            delivery.watch(self._leaves[key])
            if self._must_make_way(key):
                return False
        return place is None and self._reached[key].take(delivery)

    async def _put(self, delivery: Delivery, key: str, order_key: Place | int | None) -> None:
        """Put `delivery` into its lane, which it has not entered, as soon as it may."""
        assert not isinstance(order_key, Place)  # noqa: S101 - a window takes what is put into it
        lane = self._reached[key]
        if len(self._reached) == 1:
            await lane.put(delivery, order_key=order_key)
            return
        self._putting += 1
        try:
            await lane.put(
                delivery,
                partial(self._another_starves, key),
                at_once=self._must_make_way(key),
                order_key=order_key,
            )
        finally:
            self._putting -= 1

    def _starves(self, key: str, starving: bool) -> None:
        """Hear that a lane begins to starve, or ceases: it may be that another holds the source."""
        if not starving:
            self._starving.discard(key)
            return
        self._starving.add(key)
        if self._putting or self._intake.full:
            self.make_way()

    def make_way(self) -> None:
        """Have the lanes that hold more than their share park it, if another starves meanwhile.

        Called when the source has no free slot.
        """
        for key, lane in self._reached.items():
            if self._another_starves(key):
                lane.make_way(for_all=self._must_make_way(key))

    def _another_starves(self, key: str) -> bool:
        return len(self._starving) > (key in self._starving)

    def _must_make_way(self, key: str) -> bool:
        """Tell whether a lane has more than its share of a source that is held, while another starves.

        Where the shares are so small that both starve, by what each is used to, it is the one that has next
        to nothing.
        """
        if not self._starving or self._taken[key] <= self._share or not self._intake.full:
            return False
        if key not in self._starving:
            return True
        return any(4 * self._taken[other] < self._share for other in self._starving)

    def _left(self, lane: str, _delivery: Delivery, _outcome: Outcome) -> None:
        self._taken[lane] -= 1


_REASONS = ("no_match", "missing_key", "not_allowed")
"""Why an event matched no route; the last that holds is told."""
