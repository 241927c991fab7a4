"""What `check` finds out about the brokers that hermes sends to, without taking a message."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Findings, Patience
from bridge.sources.broker.check import Look
from bridge.sources.broker.check import check as check_brokers
from bridge.sources.rucio.config import RucioConfig


async def check(config: RucioConfig, key: str, patience: Patience, look: Look) -> Sequence[Finding]:
    """Look at the brokers of `sources.{key}`, at each as `look` does by the configured protocol."""
    found = list(await check_brokers(config, key, patience, look))
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
