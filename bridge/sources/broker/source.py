"""A source of message brokers: reads every one that may have been sent to, and answers what is settled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from bridge.core.delivery import Delivery
from bridge.core.ports import Slots
from bridge.sources.broker.config import BrokerConfig
from bridge.sources.broker.link import Opener
from bridge.sources.broker.message import Read
from bridge.sources.broker.reader import Reader
from bridge.sources.reading import reading
from bridge.sources.storage_events import Open
from bridge.telemetry.metrics import SourceMetrics


class BrokerSource:
    """One `type: rucio` or `type: amqp` of the configuration.

    It is lost only when no broker can be reached at its opening. Afterwards each address is tried again on
    its own, and told in `problems` meanwhile; `bridge_source_up` is 0 while none is read.
    """

    def __init__(
        self,
        config: BrokerConfig,
        key: str,
        metrics: SourceMetrics,
        *,
        open_link: Opener,
        read: Read,
        how: Open = "none",
    ) -> None:
        """Read by links of `open_link`, make of messages what `read` does, opened as `how` says."""
        self._config = config
        self._open_link = open_link
        self._read = read
        self._how = how
        self._metrics = metrics
        self._log = structlog.get_logger(__name__).bind(source=key)
        self._reader: Reader | None = None

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Subscribe at every address. Raises SourceLost with the reasons when none can be read."""
        reader = Reader(
            self._config,
            self._open_link,
            read=self._read,
            how=self._how,
            slots=slots,
            metrics=self._metrics,
            log=self._log,
        )
        async with reading(reader, f"{self._config.type} reader", reader.opened()) as batches:
            self._reader = reader
            try:
                yield batches
            finally:
                self._reader = None

    def problems(self) -> Sequence[str]:
        """Tell what can't be read now, and why."""
        return [] if self._reader is None else self._reader.problems()
