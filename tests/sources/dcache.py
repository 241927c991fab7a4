"""What a test of the dCache source needs beside `reading`: a site, a store, and sources of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.core.delivery import Outcome
from bridge.core.event import Event
from bridge.sandbox.dcache import SandboxDcache
from bridge.sources import Rescan
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.progress import Phase
from bridge.sources.dcache.session import Session
from bridge.sources.dcache.source import DcacheSource
from bridge.store import Store
from bridge.store.config import StoreConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import Hands, keeping, opened, until


def source(
    site: SandboxDcache | None,
    store: Store,
    state_dir: Path,
    *,
    metrics: Metrics | None = None,
    rescan: Rescan | None = None,
    **more: Any,
) -> DcacheSource:
    """Make a source of `site`; `more` are keys of the configuration, `endpoint` where there is no site."""
    values: dict[str, Any] = {
        "type": "dcache",
        "endpoint": None if site is None else site.base,
        "auth": {"type": "basic", "username": "bridge", "password": "bridge"},
        "paths": ["/data/in"],
        "request_rate": "1000/s",
        **more,
    }
    kept = replace(keeping(), spool=lambda: store.spool("arrivals"), state_dir=state_dir, rescan=rescan)
    own = (metrics or Metrics()).source("arrivals")
    return DcacheSource(DcacheConfig.model_validate(values), "arrivals", own, kept)


class Bridge:
    """A source of its own with a store of its own, which takes and accepts whatever comes."""

    def __init__(self, site: SandboxDcache, directory: Path, **more: Any) -> None:
        self.site = site
        self.directory = directory
        self.more = more
        self.metrics = Metrics()
        self.events: list[Event] = []
        """All that was accepted, in order, over all openings."""
        self.store_config = StoreConfig()

    @asynccontextmanager
    async def running(self, *, limit: int = 1000, rescan: Rescan | None = None) -> AsyncIterator[Running]:
        """Open it on its store; what it hands out is accepted until the end."""
        async with Store.open(self.directory, self.metrics, self.store_config) as store:
            made = source(self.site, store, self.directory, metrics=self.metrics, rescan=rescan, **self.more)
            async with opened(made, limit) as hands:
                yield Running(self, made, store, hands)

    @property
    def paths(self) -> list[str | None]:
        """Where the files are whose events were accepted."""
        return [event.subject for event in self.events]


class Running:
    """One opening."""

    def __init__(self, bridge: Bridge, made: DcacheSource, store: Store, hands: Hands) -> None:
        self.bridge = bridge
        self.source = made
        self.store = store
        self.hands = hands

    @property
    def session(self) -> Session:
        """What was opened."""
        assert self.source._session is not None
        return self.source._session

    @property
    def spool(self) -> Any:
        return self.store.spool("arrivals")

    async def healed(self) -> None:
        """Return once all is listed and the stream is connected."""

        def is_so() -> bool:
            session = self.source._session
            return (
                session is not None
                and session.progress.phase is Phase.KNOWN
                and self.bridge.site.connected > 0
            )

        await until(is_so, 20)

    async def accept(self, count: int, *, timeout: float = 60.0) -> list[Event]:
        """Take and accept so many."""
        taken = await self.hands.take(count, timeout=timeout)
        for delivery in taken:
            delivery.settle(Outcome.ACCEPTED)
        events = [delivery.event for delivery in taken]
        self.bridge.events += events
        return events

    async def nothing_more(self, seconds: float = 0.4) -> None:
        """Assert that nothing is left in the store, and that nothing comes."""
        await until(lambda: self.spool.waiting == 0, 20)
        await self.hands.takes_nothing(seconds)
