"""The Rucio source: reads every broker that hermes may have sent to, and answers what is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from bridge.core.delivery import Delivery
from bridge.core.ports import Slots
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.link import Opener
from bridge.sources.rucio.reader import Reader
from bridge.telemetry.metrics import SourceMetrics


class RucioSource:
    """One `type: rucio` of the configuration.

    It is lost only when no broker can be reached at its opening. Afterwards each address is tried again on
    its own, and told in `problems` meanwhile; `bridge_source_up` is 0 while none is read.
    """

    def __init__(self, config: RucioConfig, key: str, metrics: SourceMetrics) -> None:
        self._config = config
        self._identity = config.identity or key
        self._metrics = metrics
        self._log = structlog.get_logger(__name__).bind(source=key)
        self._reader: Reader | None = None

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Subscribe at every address. Raises SourceLost with the reasons when none can be read."""
        reader = Reader(
            self._config,
            opener(self._config),
            identity=self._identity,
            slots=slots,
            metrics=self._metrics,
            log=self._log,
        )
        # Not a TaskGroup: it would wrap what the runner raises through this context into a group.
        running = asyncio.create_task(reader.run(), name="rucio reader")
        reader.batches.rests_on(running)
        try:
            await reader.batches.begun(reader.opened())
            self._reader = reader
            yield reader.batches
        finally:
            self._reader = None
            running.cancel()
            await asyncio.wait([running])

    def problems(self) -> Sequence[str]:
        """Tell what can't be read now, and why."""
        return [] if self._reader is None else self._reader.problems()


def opener(config: RucioConfig) -> Opener:
    """Give what opens a link by the configured protocol; only its client library is loaded."""
    if config.protocol == "amqp":
        from bridge.sources.rucio.amqp import open_link as open_amqp

        return open_amqp
    from bridge.sources.rucio.stomp import open_link as open_stomp

    return open_stomp
