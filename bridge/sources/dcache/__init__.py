"""Watches directories of a dCache by its storage events, and finds by listing what it has no event for.

An event becomes a Delivery on its way from the left to the right. Each arrow is a call, and none goes back.

    dCache ──▶ stream ─┬─ events of files ────────▶ keeping ──────────────────┐
                       ├─ of directories ─▶ departures ─┐                     ▼
                       └─ missed events ──▶ gaps ───────┴─▶ agenda ─┐       store ──▶ backlog ──▶ Deliveries
                                                                    ▼         ▲          │
    dCache ◀── watches, entries of directories ────────────────  listing ─────┘       lookups

    source      what the runner opens: finds or makes the `channel`, and runs a session
    session     makes the parts, each from those that it calls, and runs them together
    following   keeps the stream connected, and replaces the channel when it is gone
    stream      reads events (`inotify`), and passes each on to the part that it concerns
    keeping     writes events to the store, with the stream's position, before anything is made of them
    departures  follows renames (`moves`), and ends the watches of directories that have left
    gaps        counts events that were missed, and has listed where they were
    agenda      which directory is listed next; `progress` knows how far the listing of all has come
    listing     watches and lists directories, and keeps files that have not entered before
    backlog     reads the store, has looked up what is read, and hands out Deliveries
    lookups     which file it is and whether it enters; `settling` and `waits` say what it waits for
    health      whether the stream is connected, for readiness and the metrics
    occurrence  an event or a listed file, as the store keeps it; and the Event that it becomes
    rest        dCache's REST API

What all parts share is in `site`: the configuration, which directories and files are wanted (`scope`), the
connection, and how far all has come (`state`). `watches` knows which subscription is of which directory.
Beside a session, `check` and `looking` ask dCache what the commands `check`, `why` and `again` want to know.
"""

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
