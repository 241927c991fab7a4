"""A Kafka source as the tests of its parts want it."""

from __future__ import annotations

from typing import Any

from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.source import KafkaSource
from bridge.telemetry.metrics import Metrics
from bridge.testing import keeping


def source(
    broker: Any,
    topic: str,
    *,
    key: str = "uploads",
    metrics: Metrics | None = None,
    lost: dict[str, int] | None = None,
    **more: Any,
) -> KafkaSource:
    """Make a source of `broker` (anything with `bootstrap_servers`) for one topic."""
    values: dict[str, Any] = {
        "type": "kafka",
        "bootstrap_servers": broker.bootstrap_servers,
        "group_id": topic,
        "session_timeout": 2,  # tansu holds a join back for half of it
        **({} if "topic_pattern" in more else {"topics": [topic]}),
        **more,
    }
    own = (metrics or Metrics()).source(key)
    return KafkaSource(KafkaConfig.model_validate(values), key, own, keeping(lost).lost)
