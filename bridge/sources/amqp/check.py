"""What `check` finds out about a queue of RabbitMQ, without taking a message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bridge.core.ports import Finding, Findings, Patience
from bridge.sources.amqp.config import AmqpConfig
from bridge.sources.broker import check as broker


async def check(config: AmqpConfig, key: str, patience: Patience) -> Sequence[Finding]:
    """Look at the brokers of `sources.{key}`."""
    look = partial(
        broker.look_by_amqp,
        config=config,
        queue=config.queue,
        declare=config.declare,
        key=key,
        patience=patience,
    )
    found = list(await broker.check(config, key, patience, look))
    findings = Findings(f"source {key}")
    findings.note(
        "messages without `message_id` that are alike in all are one event: AMQP does not tell one that "
        "comes again from another",
        "have publishers set `message_id`",
    )
    return [*found, *findings.found]
