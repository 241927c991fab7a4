"""What `check` tells of routes whose events are sent together."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Findings
from bridge.pipeline.merging import MergeConfig
from bridge.settings import Settings
from bridge.store.windows import most_remembered

_BYTES_A_MEMBER = 250
"""About what the id of one takes, with its index."""


def check_routes(settings: Settings) -> Sequence[Finding]:
    """Tell what "once" means for events that are sent together."""
    findings = Findings("routes")
    merging = [route for route in settings.routes if route.merges]
    if not merging:
        return ()
    days = min((route.merge or MergeConfig()).remember for route in merging) / 86400
    members = most_remembered(settings.store.max_bytes) // _BYTES_A_MEMBER // 1000 * 1000
    findings.note(
        "an event that is sent together with others is so once, though it comes again, for "
        f"{days:g} days (merge.remember), while about {members:,} are remembered (an eighth of "
        "store.max_bytes): beyond that at least once"
    )
    findings.note(
        f"of several bridges that read {' or '.join(sorted({route.from_ for route in merging}))} each sends "
        "together what it gets itself: an event that two get is sent twice, and a folder or key is parted, "
        "unless it is all in one partition of Kafka"
    )
    for number, route in enumerate(settings.routes, 1):
        if route.complete is not None and route.complete.marker is not None and route.quiet is None:
            findings.warning(
                f"route {number} sends what is there when the marker comes: an event that the marker has "
                "overtaken (a file's look-up takes a moment, a queue keeps no order) is late",
                "give it time: `quiet: 10s`",
            )
    return findings.found
