"""Reading over STOMP 1.2 what hermes sends to ActiveMQ or RabbitMQ, and looking at the broker."""

from __future__ import annotations

from functools import partial

from bridge.core.ports import Findings, Patience
from bridge.sources.broker.check import Look, tell_stream
from bridge.sources.broker.link import Opener, Place
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.stomp import is_stream, open_link


def opener(config: RucioConfig) -> Opener:
    """Return what opens a link to the destination."""
    return partial(open_link, config)


def look(config: RucioConfig, key: str, patience: Patience) -> Look:
    """Return what logs in and tells what is known of the destination, for `check`."""
    return partial(_look_at, config=config, key=key)


async def _look_at(findings: Findings, place: Place, *, config: RucioConfig, key: str) -> None:
    if await is_stream(config, place):
        tell_stream(findings, key, f"{place}: {config.destination}", "destination")
        return
    findings.ok(f"{place}: logged in; {config.destination} was not tried, since that would take messages")
