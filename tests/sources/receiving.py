"""What a test of the SQS source needs beside `reading`: a source of a queue at moto."""

from __future__ import annotations

from typing import Any

from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.source import SqsSource
from bridge.telemetry.metrics import Metrics
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, MotoQueue


def source(queue: MotoQueue, /, *, metrics: Metrics | None = None, **more: Any) -> SqsSource:
    """Make a source of `queue`; `more` are keys of the configuration."""
    values: dict[str, Any] = {
        "type": "sqs",
        "queue": queue.name,
        "region": REGION,
        "endpoint_url": queue.moto.url,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
        "wait_seconds": 1,
        **more,
    }
    return SqsSource(SqsConfig.model_validate(values), "bucket", (metrics or Metrics()).source("bucket"))
