"""What `check` found, as lines for a person and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bridge.checkup.preview import Preview, ServicePreview
from bridge.core.ports import Finding, Severity
from bridge.pipeline.decisions import Decision
from bridge.sources import NoEvent

_SHOWN_PAYLOAD = 500
"""Characters of a payload shown to a person."""
_WHY_NOT = {
    "no_match": "no: `when` is false",
    "missing_key": "no: an expression names a key that the event does not have",
    "not_allowed": "no: `to` gave a service that is not in `allow`",
    "route": "dead letter:",
    "not_json": "dead letter:",
    "undecodable": "dead letter: can't be decoded:",
}


def lines_of_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Give a line for each finding, with what to do about it behind it, and a summary."""
    width = max((len(finding.about) for finding in findings), default=0)
    for finding in findings:
        yield f"{finding.severity:8} {finding.about:{width}}  {finding.message}"
        if finding.remedy:
            yield f"{'':8} {'':{width}}  → {finding.remedy}"
    counts = Counter(finding.severity for finding in findings)
    told = [
        f"{counts[one]} {one}{'s' if counts[one] != 1 else ''}"
        for one in (Severity.PROBLEM, Severity.WARNING)
    ]
    yield " and ".join(told)


def json_of_findings(findings: Sequence[Finding]) -> dict[str, Any]:
    """Give the findings as one JSON object; `ok` tells that no problem is among them."""
    ok = all(finding.severity is not Severity.PROBLEM for finding in findings)
    return {"ok": ok, "findings": [asdict(finding) for finding in findings]}


def lines_of_preview(preview: Preview, *, with_job: bool) -> Iterator[str]:
    """Tell a person what would become of an event; its job's name only where its id is not made up."""
    event = preview.event
    subject = event.subject or "-"
    yield f"event:    id {event.id}, type {event.type}, subject {subject}, {len(event.data)} bytes"
    yield from _routes(preview)
    if not preview.services and all(decision.place is None for decision in preview.decisions):
        yield "result:   goes to no service"
    for service in preview.services:
        yield from _service(service, with_job)


def lines_of_routes(told: Sequence[Preview | NoEvent]) -> Iterator[str]:
    """Tell a person what each route makes of each event of a message, or why there is none."""
    for one in told:
        yield from _routes(one) if isinstance(one, Preview) else lines_of_no_event(one)


def lines_of_no_event(told: NoEvent) -> Iterator[str]:
    """Tell a person why there is none."""
    yield f"{'dead letter:' if told.dead else 'no event is made of it:'} {told.reason}"


def _routes(preview: Preview) -> Iterator[str]:
    for number, decision in enumerate(preview.decisions, 1):
        yield f"route {number}:  {_route(decision)}: {_decided(decision)}"


def _route(decision: Decision) -> str:
    route = decision.route
    return f"{'every event' if route.when is None else route.when} → {route.to}"


def _decided(decision: Decision) -> str:
    if decision.place is not None:
        key = f" of key {decision.place.key}" if decision.place.key else ""
        if decision.place.is_marker:
            return f"yes, to {decision.service}: the marker that closes the window{key}"
        return f"yes, to {decision.service}, with others in the window{key}"
    if decision.service is not None and decision.route.order_by is not None:
        order = (
            "behind those of its key that came before" if decision.ordered else "in no order: it has no key"
        )
        return f"yes, to {decision.service}, {order}"
    if decision.service is not None:
        return f"yes, to {decision.service}"
    return " ".join(filter(None, (_WHY_NOT[decision.reason], decision.detail)))


def _service(service: ServicePreview, with_job: bool) -> Iterator[str]:
    yield f"service:  {service.key}: POST /{service.mode}/{service.service}"
    if service.payload is None:
        yield f"  dead letter: {service.trouble}"
        return
    if service.job is not None:
        yield f"  job:     {service.job if with_job else 'named by the id: give the real one with --id'}"
    yield f"  payload: {len(service.payload)} bytes of {service.limit} at most"
    shown = service.payload[:_SHOWN_PAYLOAD]
    yield f"  {shown}{'…' if len(shown) < len(service.payload) else ''}"


def json_of_preview(preview: Preview | NoEvent) -> dict[str, Any]:
    """Return a preview as one JSON object, payloads whole; or why there is no event."""
    if isinstance(preview, NoEvent):
        return {"dead_letter" if preview.dead else "filtered": preview.reason}
    event = preview.event
    return {
        "id": event.id,
        "type": event.type,
        "subject": event.subject,
        "attributes": dict(event.attributes),
        "routes": [
            {
                "when": decision.route.when,
                "to": decision.route.to,
                "service": decision.service,
                "reason": decision.reason,
                "detail": decision.detail,
                "window": None
                if decision.place is None
                else {"key": decision.place.key, "marker": decision.place.is_marker},
            }
            for decision in preview.decisions
        ],
        "services": [asdict(service) for service in preview.services],
    }
