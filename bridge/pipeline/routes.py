"""What routes make of an event: which service it is for, and how it is read and presented there."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog
from pydantic import Field

from bridge.core.event import Event
from bridge.core.ports import NO_LANE, DeadLetter
from bridge.pipeline.codings import Coding, Codings, Undecodable, decode, encode
from bridge.pipeline.context import View
from bridge.pipeline.expression import Expression, NoMatch, Unroutable
from bridge.pipeline.merging import MergesConfig, Merging, Place
from bridge.pipeline.order import order_key
from bridge.telemetry.logging import excerpt

REASONS = ("no_match", "missing_key", "not_allowed")
"""Why an event matched no route; the last that holds is told."""
_FEW, _OF = 10, 1_000
"""More slow evaluations than this, of so many events, are more than one in a hundred."""

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


class Opened(NamedTuple):
    """An event as a route reads it."""

    event: Event
    view: View
    fault: Undecodable | None = None
    """Why it can't be decoded; the event is as it came then, and its view without data."""


class Route:
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

    def lane_of(self, opened: Opened) -> str | None:
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


class Routes:
    """Routes, and what they read of an event."""

    def __init__(self, configs: Iterable[RouteConfig]) -> None:
        self.routes = [Route(config) for config in configs]
        expressions = [one for route in self.routes for one in route.expressions]
        self._names = frozenset(name for one in expressions for name in one.names)
        reads = [one.reads for one in expressions]
        self._reads = None if None in reads else frozenset(way for some in reads for way in some or ())
        self._matches = any(one.matches for one in expressions)
        self._blank = View(Event(id="", source="", type="", data=b""), frozenset(), None, self._matches)

    def view(self, event: Event) -> View:
        """Show `event` to all of the routes."""
        return View(event, self._names, self._reads, self._matches) if self._names else self._blank

    def opened(self, event: Event, codings: Sequence[Coding]) -> Generator[None, None, Opened]:
        """Decode the body of `event` and show it, in pieces."""
        try:
            body = yield from decode(event.data, codings)
        except Undecodable as fault:
            dataless = View(event, self._names - {"data"}, None, self._matches)
            return Opened(event, dataless, fault)
        event = event.replace(data=body)
        return Opened(event, self.view(event))

    def why_not(
        self, view: View, opened: Mapping[Sequence[Coding], Opened], findings: Mapping[Route, NoMatch]
    ) -> Generator[None, None, str]:
        """Say of each route what in it does not want the event in `view`, in pieces.

        It is `opened` as each coding has it; `findings` are what the routes raised.
        """
        told = []
        for route in self.routes:
            read = opened[route.decode].view if route.decode else view
            told.append(route.why_not(read, findings.get(route)))
            yield
        return "; ".join(told)


def presented(event: Event, codings: Sequence[Coding]) -> Generator[None, None, Event]:
    """Encode the body of `event`, in pieces. Raise Undecodable where it is too long for it."""
    return event.replace(data=(yield from encode(event.data, codings))) if codings else event
