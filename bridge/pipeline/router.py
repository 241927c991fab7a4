"""Which lanes an event goes to."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import structlog
from pydantic import Field

from bridge.core import errors
from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import DeadLetter, Keeper
from bridge.pipeline import expression
from bridge.pipeline.dead import bury
from bridge.pipeline.expression import VARIABLES
from bridge.pipeline.lane import Lane
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import SourceMetrics
from bridge.values import Model

_DEEPEST = 500
"""Nesting of `data` shown to CEL: the evaluator converts it recursively on the C stack."""

_log = structlog.get_logger(__name__)


class RouteConfig(Model):
    """From a source, when an expression holds, to a service."""

    from_: str = Field(alias="from")
    """A key of `sources`."""
    when: str | None = None
    """CEL; every event when not given."""
    to: str
    """A key of `services`; with `allow`, a CEL expression that gives one."""
    allow: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The services that `to` may choose from."""

    @property
    def reachable(self) -> frozenset[str]:
        """The services that an event may be put to by this route."""
        return frozenset(self.allow or (self.to,))


class _NoMatch(Exception):  # noqa: N818 - a finding about one event, not an error
    """The route does not want this event; carries the bounded reason."""


class _Unroutable(Exception):  # noqa: N818 - likewise
    """An expression can't be evaluated for this event."""


class _Expression:
    """A compiled expression."""

    def __init__(self, source: str) -> None:
        self.program = expression.compile(source)
        self._most = expression.most_values(source)

    def evaluate(self, context: dict[str, Any]) -> Any:
        """Give its value for the event in `context`. Raises _NoMatch or _Unroutable."""
        if self._most is not None and expression.has_more_values(context, self._most):
            raise _Unroutable(f"`{self.program.source}`: more than {self._most} values are too many for it")
        try:
            return self.program.execute(context)
        except KeyError:
            raise _NoMatch("missing_key") from None
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _Unroutable(self._explain(context, error)) from None

    def _explain(self, context: dict[str, Any], error: Exception) -> str:
        text = str(error).split(". ", 1)[0]
        data = context.get("data")
        if isinstance(data, (str, bytes)):
            text += f" (data is not a JSON document but {type(data).__name__} of {len(data)} long)"
        return f"`{self.program.source}`: {text}"


class _Route:
    """One route with its expressions compiled."""

    def __init__(self, config: RouteConfig) -> None:
        self.to = config.to
        self.service = config.to if config.allow is None else ""
        self._when = None if config.when is None else _Expression(config.when)
        self._to = None if config.allow is None else _Expression(config.to)
        self._allow = self.reachable = config.reachable
        programs = [one.program for one in (self._when, self._to) if one is not None]
        self.variables = frozenset(name for program in programs for name in program.variables())
        self.keys = [_keys_of_data(program.source) for program in programs]

    def lane(self, context: dict[str, Any]) -> str:
        """Name the lane of the event in `context`. Raises _NoMatch or _Unroutable."""
        if self._when is not None:
            matched = self._when.evaluate(context)
            if matched is False:
                raise _NoMatch("no_match")
            if matched is not True:
                raise _Unroutable(f"`when` gave {type(matched).__name__}, expected true or false")
        if self._to is None:
            return self.to
        chosen = self._to.evaluate(context)
        if not isinstance(chosen, str):
            raise _Unroutable(f"`to` gave {type(chosen).__name__}, expected the name of a service")
        if chosen not in self._allow:
            raise _NoMatch("not_allowed")
        return chosen


@dataclass(frozen=True, slots=True)
class Decision:
    """What one route makes of one event."""

    route: RouteConfig
    service: str | None
    """The service it is put to; None where there is none."""
    reason: str = ""
    """Why there is none: `no_match`, `missing_key` or `not_allowed`. Or `route`: a dead letter, since it
    can't be evaluated."""
    detail: str = ""
    """For `route`: what went wrong."""


def decide(routes: Iterable[RouteConfig], event: Event) -> list[Decision]:
    """Tell what each of `routes` makes of `event`, as a Router does, for a person who asks why."""
    decisions = []
    for config in routes:
        route = _Route(config)
        try:
            service = route.lane(_context(event, route.variables, _all_keys(route.keys)))
        except _NoMatch as finding:
            decisions.append(Decision(config, None, str(finding)))
        except _Unroutable as finding:
            decisions.append(Decision(config, None, "route", str(finding)))
        else:
            decisions.append(Decision(config, service))
    return decisions


def matcher(when: str) -> Callable[[Event], bool]:
    """Make a test of events from a condition as in a route; an event it can't be evaluated for fails it."""
    route = _Route(RouteConfig.model_validate({"from": "", "when": when, "to": ""}))
    keys = _all_keys(route.keys)

    def matches(event: Event) -> bool:
        try:
            route.lane(_context(event, route.variables, keys))
        except (_NoMatch, _Unroutable):
            return False
        return True

    return matches


class Router:
    """The routes of one source."""

    def __init__(
        self,
        routes: Iterable[RouteConfig],
        lanes: Mapping[str, Lane],
        keeper: Keeper,
        metrics: SourceMetrics,
        *,
        slots: int,
    ) -> None:
        self._routes = [_Route(config) for config in routes]
        self._lanes = lanes
        self._keeper = keeper
        self._metrics = metrics
        reachable = {lane for route in self._routes for lane in route.reachable}
        self._alone = len(reachable) == 1
        """One lane takes all there is: then holding the source back starves no other."""
        self._share = max(1, slots // max(1, len(reachable)))
        """How many of the source's `slots` one lane may take: a dead one leaves the others theirs."""
        self._taken = dict.fromkeys(reachable, 0)
        self._variables = frozenset(name for route in self._routes for name in route.variables)
        self._keys = _all_keys(keys for route in self._routes for keys in route.keys)

    async def route(self, delivery: Delivery) -> None:
        """Put `delivery` into its lanes, waiting while one is full; settle it when it has none.

        An event goes into a lane once, however many routes lead there. A route that can't be evaluated
        makes a dead letter of its own and does not stop the others. An event that fails in a way nobody
        foresaw becomes a dead letter too: it would come again and again, and end its source each time.
        """
        try:
            await self._route(delivery)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        # A panic of the CEL evaluator, which is Rust's, is no Exception.
        except BaseException as error:  # noqa: BLE001
            _log.exception("an event can't be routed", source=self._metrics.key)
            detail = f"defect in routing: {excerpt(errors.reason(error))}"
            letter = DeadLetter(event=delivery.event, service="", cause="route", detail=detail)
            await bury(self._keeper, delivery, letter)

    async def _route(self, delivery: Delivery) -> None:
        if delivery.outcome is not None:  # released while earlier ones of its batch waited for room
            return
        if delivery.fault is not None:
            letter = DeadLetter(event=delivery.event, service="", cause="unreadable", detail=delivery.fault)
            await bury(self._keeper, delivery, letter)
            return
        context = _context(delivery.event, self._variables, self._keys) if self._variables else {}
        lanes: list[str] = []
        dead: list[DeadLetter] = []
        reason = "no_match"
        for route in self._routes:
            try:
                lane = route.lane(context)
            except _NoMatch as finding:
                reason = max(reason, str(finding), key=_REASONS.index)
            except _Unroutable as finding:
                dead.append(
                    DeadLetter(
                        event=delivery.event, service=route.service, cause="route", detail=str(finding)
                    )
                )
            else:
                if lane not in lanes:
                    lanes.append(lane)
        if len(lanes) == 1 and not dead:
            await self._put(delivery, lanes[0])
        elif lanes or dead:
            parts = delivery.split([delivery.event] * (len(lanes) + len(dead)))
            for part, letter in zip(parts, dead, strict=False):
                await bury(self._keeper, part, letter)
            for part, lane in zip(parts[len(dead) :], lanes, strict=True):
                await self._put(part, lane)
        else:
            self._metrics.filtered(reason)
            _log.debug("event filtered", source=self._metrics.key, id=delivery.event.id, reason=reason)
            delivery.settle(Outcome.FILTERED)

    async def _put(self, delivery: Delivery, lane: str) -> None:
        if self._alone:
            await self._lanes[lane].put(delivery, alone=True)
            return
        crowded = self._taken[lane] >= self._share
        self._taken[lane] += 1
        delivery.watch(partial(self._left, lane))
        await self._lanes[lane].put(delivery, alone=False, crowded=crowded)

    def _left(self, lane: str, _delivery: Delivery, _outcome: Outcome) -> None:
        self._taken[lane] -= 1


def _all_keys(sets: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """Join sets of keys; one that may be any makes the whole any (None)."""
    joined: frozenset[str] = frozenset()
    for keys in sets:
        if keys is None:
            return None
        joined |= keys
    return joined


_REASONS = ("no_match", "missing_key", "not_allowed")
"""Why an event matched no route; the last that holds is told."""


_DATA_IN_CEL = re.compile(
    r"""\bdata\b (?: \s*\.\s* ([A-Za-z_]\w*+) (?!\s*\() | \s*\[\s* (?: "([\w-]+)" | '([\w-]+)' ) \s*\] )?""",
    re.ASCII | re.VERBOSE,
)


def _keys_of_data(expression: str) -> frozenset[str] | None:
    """Give the top-level keys of `data` that `expression` can read; None when it may read any.

    Too many are harmless, so a string that looks like a use is taken for one; comments are given up on.
    """
    if "//" in expression:
        return None
    uses = [found[1] or found[2] or found[3] for found in _DATA_IN_CEL.finditer(expression)]
    return None if None in uses else frozenset(uses)


def _context(event: Event, variables: frozenset[str], keys: frozenset[str] | None) -> dict[str, Any]:
    """Give CEL what its expressions name, and no more: converting costs most of an evaluation's time."""
    context: dict[str, Any] = {}
    for name in variables:
        if name == "data":
            context[name] = _data(event.data, keys)
        elif name == "subject":
            context[name] = event.subject or ""
        elif name in VARIABLES:  # others are names bound inside an expression
            context[name] = getattr(event, name)
    return context


def _data(raw: bytes, keys: frozenset[str] | None) -> Any:
    """Give JSON as its value (an object with `keys` only), other UTF-8 as text, anything else as bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        return text
    if keys is not None and isinstance(value, dict):
        value = {key: value[key] for key in keys if key in value}
    return text if text.count("[") + text.count("{") > _DEEPEST and _too_deep(value) else value


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_not_json)


def _too_deep(value: Any) -> bool:
    level: Sequence[Any] = [value]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return True
