"""Watches directories of a dCache by its storage events, and finds by listing what they did not tell."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.event import Event
from bridge.core.ports import Finding, Patience, Source, Spooled
from bridge.sources import Entered, Fits, Keeping, SourceKind, Upstream
from bridge.sources.dcache.config import DcacheConfig
from bridge.telemetry.metrics import SourceMetrics


def _build(config: DcacheConfig, key: str, metrics: SourceMetrics, keeping: Keeping) -> Source:
    from bridge.sources.dcache.source import DcacheSource

    return DcacheSource(config, key, metrics, keeping)


async def _check(config: DcacheConfig, key: str, patience: Patience) -> Sequence[Finding]:
    from bridge.sources.dcache.check import check

    return await check(config, key, patience)


async def _look_for(config: DcacheConfig, name: str, _fits: Fits, entered: Entered) -> Upstream:
    from bridge.sources.dcache.looking import look_for

    return await look_for(config, name, entered)


async def _read_again(config: DcacheConfig, event_id: str, subject: str | None) -> Event:
    from bridge.sources.dcache.looking import read_again

    return await read_again(config, event_id, subject)


def _subject_of(_config: DcacheConfig, spooled: Spooled) -> str | None:
    from bridge.sources.dcache.looking import subject_of

    return subject_of(spooled)


KIND = SourceKind(
    config=DcacheConfig,
    build=_build,
    check=_check,
    look_for=_look_for,
    read_again=_read_again,
    subject_of=_subject_of,
)
