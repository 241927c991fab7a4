"""A line a minute sums up what happened, by source and by service where that was more than one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from structlog.testing import capture_logs

from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.summary import Summary


@asynccontextmanager
async def summed_up(metrics: Metrics) -> AsyncIterator[list[dict[str, Any]]]:
    """Give the lines so far, and at the end the last of them too."""
    with capture_logs() as lines:
        task = asyncio.create_task(Summary(metrics).run())
        await asyncio.sleep(0)
        try:
            yield lines  # type: ignore[misc] # structlog calls them mutable mappings
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def told(text: str, **more: Any) -> dict[str, Any]:
    return {"event": text, "log_level": "info", **more}


async def test_what_happened_is_one_line_and_where_nothing_did_there_is_none() -> None:
    metrics = Metrics()
    uploads, plants = metrics.source("uploads"), metrics.lane("plants")
    uploads.received.inc(1000)  # by what was before it began
    async with summed_up(metrics) as lines:
        await asyncio.sleep(60)
        assert not lines
        uploads.received.inc(6)
        uploads.settled[Outcome.FILTERED].inc(3)
        uploads.settled[Outcome.ACCEPTED].inc(1)
        uploads.settled[Outcome.DEAD_LETTERED].inc(2)
        plants.invocations[Verdict.ACCEPTED].inc(1)
        metrics.dead_lettered.labels("plants", "http_500").inc(2)
        await asyncio.sleep(61)
        assert lines == [told("received 6, accepted 1, filtered 3, dead 2")]
        await asyncio.sleep(3600)
        assert len(lines) == 1


async def test_sources_and_services_are_told_apart_where_more_than_one_has_changed() -> None:
    metrics = Metrics()
    sources = [metrics.source(key) for key in ("uploads", "bucket", "quiet")]
    plants, flood = metrics.lane("plants"), metrics.lane("flood")
    async with summed_up(metrics) as lines:
        for count, source in enumerate(sources[:2], 1):
            source.received.inc(count)
        sources[0].settled[Outcome.PARKED].inc()
        sources[1].settled[Outcome.RELEASED].inc()
        sources[1].lost.inc(7)
        plants.invocations[Verdict.ACCEPTED].inc(2)
        plants.invocations[Verdict.DUPLICATE].inc(1)
        for verdict in (Verdict.CAPACITY, Verdict.UNAVAILABLE, Verdict.REFUSED):
            flood.invocations[verdict].inc()
        metrics.dead_lettered.labels("", "route").inc()
        await asyncio.sleep(61)
    assert lines == [
        told(
            "received 3, accepted 2, duplicate 1, dead 1, parked 1, given back 1, lost 7, failed attempts 3",
            sources={"bucket": "received 2, given back 1, lost 7", "uploads": "received 1, parked 1"},
            services={"flood": "failed attempts 3", "none": "dead 1", "plants": "accepted 2, duplicate 1"},
        )
    ]


async def test_what_is_left_is_told_at_the_end() -> None:
    metrics = Metrics()
    uploads = metrics.source("uploads")
    async with summed_up(metrics) as lines:
        uploads.received.inc()
        await asyncio.sleep(1)
        assert not lines
    assert lines == [told("received 1")]
