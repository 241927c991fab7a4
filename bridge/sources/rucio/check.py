"""What `check` finds out about the brokers that hermes sends to, without taking a message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bridge.core.ports import Finding, Findings, Patience
from bridge.sources.broker import check as broker
from bridge.sources.broker.link import Place
from bridge.sources.rucio.config import RucioConfig


async def check(config: RucioConfig, key: str, patience: Patience) -> Sequence[Finding]:
    """Look at the brokers of `sources.{key}`."""
    look = (
        partial(_look_by_stomp, config=config, key=key)
        if config.queue is None
        else partial(
            broker.look_by_amqp,
            config=config,
            queue=config.queue,
            declare=config.declare,
            key=key,
            patience=patience,
        )
    )
    found = list(await broker.check(config, key, patience, look))
    if (config.destination or "").startswith("/topic/") and config.subscription is None:
        findings = Findings(f"source {key}")
        findings.warning(
            f"{config.destination} is a topic, which keeps nothing for who is away: what is sent while the "
            "bridge restarts or reconnects is lost",
            "read a queue, on ActiveMQ a virtual topic's (/queue/Consumer.NAME.VirtualTopic.…), or give "
            "`client_id` and `subscription`",
        )
        found += findings.found
    return found


async def _look_by_stomp(findings: Findings, place: Place, *, config: RucioConfig, key: str) -> None:
    from bridge.sources.rucio.stomp import look  # only who speaks STOMP loads its client

    if await look(config, place):
        broker.tell_stream(findings, key, f"{place}: {config.destination}", "destination")
        return
    findings.ok(f"{place}: logged in; {config.destination} was not tried, since that would take messages")
