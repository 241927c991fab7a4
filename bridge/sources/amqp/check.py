"""What `check` finds out about a queue of RabbitMQ, without taking a message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bridge.core.ports import Finding, Findings, Patience
from bridge.sources.amqp.config import AmqpConfig
from bridge.sources.broker.check import check as check_brokers
from bridge.sources.broker.check_queue import look_at_queue


async def check(config: AmqpConfig, key: str, patience: Patience) -> Sequence[Finding]:
    """Look at the brokers of `sources.{key}`."""
    look = partial(
        look_at_queue,
        config=config,
        queue=config.queue,
        declare=config.declare,
        key=key,
        patience=patience,
    )
    found = list(await check_brokers(config, key, patience, look))
    findings = Findings(f"source {key}")
    findings.note(
        "messages without `message_id` that are alike in all are one event: AMQP does not tell one that "
        "comes again from another",
        "have publishers set `message_id`",
    )
    return [*found, *findings.found]
