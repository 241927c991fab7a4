"""What `check` tells of routes whose events are sent together."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Findings
from bridge.pipeline.router import RouteConfig
from bridge.settings import Settings
from bridge.store.windows import most_remembered

_BYTES_A_MEMBER = 250
"""About what the id of one takes, with its index."""


def check_routes(settings: Settings) -> Sequence[Finding]:
    """Tell what "once" means for events that are sent together."""
    found: list[Finding] = []
    for number, route in enumerate(settings.routes, 1):
        if route.merges:
            findings = Findings(f"route {number}")
            _once(findings, settings, route)
            found += findings.found
    return found


def _once(findings: Findings, settings: Settings, route: RouteConfig) -> None:
    days = (7 * 86400.0 if route.merge is None else route.merge.remember) / 86400
    members = most_remembered(settings.store.max_bytes) // _BYTES_A_MEMBER
    findings.note(
        f"an event is sent with others once, though it comes again, for {days:g} days (merge.remember) or "
        f"about {members:,} events (an eighth of store.max_bytes): beyond that at least once"
    )
    findings.note(
        f"each bridge that reads {route.from_} sends what it gets itself: where there are several, an event "
        "that two get is sent by both, and a folder or key is parted, but for a key that is in one partition"
    )
