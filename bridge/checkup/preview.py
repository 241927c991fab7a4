"""What would become of an event, told without a network: routes, payload, job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.destinations.oscar.payload import PayloadError, encode
from bridge.pipeline.decisions import Decision, decide
from bridge.pipeline.routes import RouteConfig
from bridge.settings import Settings
from bridge.sources import NoEvent
from bridge.sources.registry import kind_of


@dataclass(frozen=True, slots=True)
class ServicePreview:
    """What one service would get."""

    key: str
    service: str
    """OSCAR's name of it."""
    mode: str
    limit: int
    """Bytes of the encoded event, at most."""
    payload: str | None
    """The body that OSCAR would get: ASCII. None where it can't be sent."""
    cause: str
    """Of the dead letter, where it can't be sent."""
    trouble: str
    """Why it can't be sent: that cause, and the reason."""
    job: str | None
    """The job's name; None in `mode: run`."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What the routes of one source make of an event."""

    event: Event
    decisions: Sequence[Decision]
    """By route, in the order of the configuration."""
    services: Sequence[ServicePreview]
    """But for those that would get it together with others."""

    def ends(self) -> Iterator[End]:
        """Give what comes of it in the end: each service once, and each dead letter, in the routes' order."""
        services = {service.key: service for service in self.services}
        told: set[str] = set()
        for number, decision in enumerate(self.decisions, 1):
            key, place = decision.service, decision.place
            if decision.dead:
                yield End(self.event, number, "", dead_letter=decision.reason)
            elif key is not None and key not in told:
                told.add(key)
                if place is not None:
                    yield End(self.event, number, key, window=place.key)
                else:
                    yield End(self.event, number, key, services[key], services[key].cause)


@dataclass(frozen=True, slots=True)
class End:
    """One thing that comes of a message."""

    event: Event | None
    """None of what can't be read."""
    route: int
    """Its number among those of the source, from 1; 0 for what never came to a route."""
    service: str
    """The key of the service that gets it; empty where no service was chosen."""
    sent: ServicePreview | None = None
    """What that service gets; None where it gets it together with others."""
    dead_letter: str = ""
    """The cause of the dead letter that becomes of it, if one does."""
    window: str | None = None
    """The key of the window, maybe empty, in which it goes to that service with others."""


def ends_of(told: Sequence[Preview | NoEvent]) -> Iterator[End]:
    """Give all that comes of a message; nothing where nobody wants it."""
    for one in told:
        if isinstance(one, Preview):
            yield from one.ends()
        elif one.dead:
            yield End(None, 0, "", dead_letter="unreadable")


def preview(settings: Settings, source: str, message: Event) -> Sequence[Preview | NoEvent]:
    """Tell what would become of `message`, received by `sources.{source}`.

    Return a Preview for each event that the source makes of it (an S3 notification holds several), or why
    one is not made. Raise KeyError when there is no such source.
    """
    config = settings.sources[source]
    routes = [route for route in settings.routes if route.from_ == source]
    return [
        event if isinstance(event, NoEvent) else _preview(settings, routes, event, config.trusted)
        for event in kind_of(config).events_of(config, message)
    ]


def _preview(settings: Settings, routes: Sequence[RouteConfig], event: Event, trusted: bool) -> Preview:
    decisions = decide(routes, event)
    given: dict[str, Event | None] = {}
    for decision in decisions:  # an event goes into a lane, or a window, once, however many routes lead there
        if decision.service is not None and decision.event is not None:
            given.setdefault(decision.service, None if decision.place is not None else decision.event)
    services = [_service(settings, key, each, trusted) for key, each in given.items() if each is not None]
    return Preview(event, decisions, services)


def _service(settings: Settings, key: str, event: Event, trusted: bool) -> ServicePreview:
    config = settings.services[key]
    payload, cause, trouble = None, "", ""
    try:
        payload = encode(event, mode=config.payload, trusted=trusted, max_bytes=config.event_bytes).decode(
            "ascii"
        )
    except PayloadError as error:
        cause, trouble = error.cause, f"{error.cause}: {error}"
    return ServicePreview(
        key=key,
        service=config.service or key,
        mode=config.mode,
        limit=config.event_bytes,
        payload=payload,
        cause=cause,
        trouble=trouble,
        job=invocation_name(event.source, event.id, config.identity(key)) if config.mode == "job" else None,
    )
