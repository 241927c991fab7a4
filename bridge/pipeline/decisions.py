"""What routes make of one event, for a person who asks why, and for a command that chooses events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bridge.core.event import Event
from bridge.pipeline.codings import Undecodable, at_once
from bridge.pipeline.expression import NoMatch, Unroutable
from bridge.pipeline.merging import Place
from bridge.pipeline.routes import REASONS, RouteConfig, Routes, presented


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
        return self.reason not in ("", *REASONS)


def decide(routes: Iterable[RouteConfig], event: Event) -> list[Decision]:
    """Tell what each of `routes` makes of `event`, as a Router does, for a person who asks why."""
    decisions = []
    for config in routes:
        routes_of_one = Routes([config])
        (route,) = routes_of_one.routes
        try:
            opened = at_once(routes_of_one.opened(event, route.decode))
            service, given = route.lane_of(opened), None
            place: Place | int | None = None
            if service is not None:
                place = route.place(event, opened.view)
                given = at_once(presented(opened.event, route.encode))
        except NoMatch as finding:
            decisions.append(Decision(config, None, str(finding)))
        except (Unroutable, Undecodable) as finding:
            decisions.append(Decision(config, None, finding.cause, str(finding)))
        else:
            reason = "no_match" if service is None else ""
            window, ordered = (place, False) if isinstance(place, Place) else (None, place is not None)
            decisions.append(Decision(config, service, reason, event=given, place=window, ordered=ordered))
    return decisions


def matcher(when: str) -> Callable[[Event], bool]:
    """Make a test of events from a condition as in a route; an event it can't be evaluated for fails it."""
    routes = Routes([RouteConfig.model_validate({"from": "", "when": when, "to": ""})])

    def matches(event: Event) -> bool:
        try:
            return routes.routes[0].lane(routes.view(event)) is not None
        except (NoMatch, Unroutable):
            return False

    return matches
