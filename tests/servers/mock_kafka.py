"""librdkafka's mock cluster: right about offsets out of range; serves one consumer a group."""

from __future__ import annotations

from types import TracebackType

from confluent_kafka import Producer


class MockKafka:
    """A cluster inside this process, alive as long as this object. Topics come into being on first use."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self._producer: Producer | None = None
        self.bootstrap_servers = ""

    def __enter__(self) -> MockKafka:
        self._producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": self._brokers})
        brokers = self._producer.list_topics(timeout=5).brokers.values()
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer = None
