"""The SQS source: receives what it has slots for, and deletes only what is settled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from bridge.core.delivery import Delivery
from bridge.core.errors import SourceLost
from bridge.core.ports import Slots
from bridge.core.steady import Steady
from bridge.sources.reading import reading
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import Throttled, Unanswered, connect
from bridge.sources.sqs.reader import Reader
from bridge.telemetry.metrics import SourceMetrics


class SqsSource:
    """One `type: sqs` of the configuration.

    A message received is kept invisible to others, by the queue's own visibility timeout again and again,
    until it is settled: then it is deleted, or (RELEASED) made visible at once. What is left at the end is
    given back so. Only what the server hands to a receive that was cut off at that moment is out of anyone's
    hands, and comes back after the visibility timeout.
    """

    def __init__(self, config: SqsConfig, key: str, metrics: SourceMetrics) -> None:
        self._config = config
        self._identity = config.identity or key
        self._metrics = metrics
        self._log = structlog.get_logger(__name__).bind(source=key)
        self._throttled = Steady()
        self._unanswered = Steady()
        self._reader: Reader | None = None

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Find the queue and read it. Raises SourceLost with the reason when it can't be used."""
        async with connect(self._config) as queue:
            try:
                attributes = await queue.attributes()
            except (Throttled, Unanswered) as failure:
                raise SourceLost(str(failure)) from None
            reader = Reader(
                queue,
                self._config,
                attributes,
                identity=self._identity,
                slots=slots,
                metrics=self._metrics,
                throttled=self._throttled,
                unanswered=self._unanswered,
                log=self._log,
            )
            self._reader = reader
            try:
                async with reading(reader, "sqs reader") as batches:
                    yield batches
            finally:
                self._reader = None
                await reader.close()

    def problems(self) -> Sequence[str]:
        """Tell that SQS asks for fewer calls, or fails to delete, until it has not for a while."""
        told = (self._throttled.problem, self._unanswered.problem)
        return [problem for problem in told if problem is not None]
