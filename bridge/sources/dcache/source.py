"""The dCache source: what the runner opens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from bridge.core.delivery import Delivery
from bridge.core.errors import SourceLost, StoreError
from bridge.core.ports import Slots
from bridge.sources import Keeping
from bridge.sources.dcache.channel import Channel
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.rest.answers import Denied, Missing, Unanswered
from bridge.sources.dcache.rest.connection import ChannelGone, Connection
from bridge.sources.dcache.rest.login import Refusal
from bridge.sources.dcache.scope import Scope
from bridge.sources.dcache.session import Session
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.state import OwnFile
from bridge.sources.reading import reading
from bridge.telemetry.metrics import SourceMetrics


class DcacheSource:
    """One `type: dcache` of the configuration.

    The stream's events are in the store, with the stream's position, before anything is made of them. Files
    that it has no event for, such as those in a directory that was not watched yet, are found by listing. A
    version of a file that has entered is marked, so that it enters once, however often it is found.
    """

    def __init__(self, config: DcacheConfig, key: str, metrics: SourceMetrics, keeping: Keeping) -> None:
        self._config = config
        self._identity = config.identity or key
        self._metrics = metrics
        self._keeping = keeping
        self._rescan = keeping.rescan
        self._log = structlog.get_logger(__name__).bind(source=key)
        self._own = OwnFile(keeping.state_dir, self._identity)
        self._refusal = Refusal()
        self._session: Session | None = None

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Find the channel or make one, and read it. Raise SourceLost with the reason when it can't be."""
        if not self._config.tls.verify:
            self._log.warning(
                "dcache: TLS is not verified (tls.verify): any server that answers gets the credentials"
            )
        spool = self._keeping.spool()
        async with Connection(self._config, self._refusal) as connection:
            channel = Channel(connection, self._config, self._own, spool, self._log)
            try:
                position = await channel.open(self._rescan)
            except (Unanswered, Denied, Missing, ChannelGone, StoreError) as error:
                raise SourceLost(str(error)) from None
            self._rescan = None
            site = Site(
                config=self._config,
                identity=self._identity,
                scope=Scope(self._config),
                connection=connection,
                channel=channel,
                spool=spool,
                position=position,
                own=self._own,
                metrics=self._metrics,
                log=self._log,
            )
            session = Session(site, slots)
            self._session = session
            try:
                async with reading(session, "dcache source") as batches:
                    yield batches
            finally:
                self._session = None
                with suppress(SourceLost):
                    self._own.save()

    def problems(self) -> Sequence[str]:
        """Return what is wrong now; nothing while the source is not open."""
        return [] if self._session is None else self._session.problems()
