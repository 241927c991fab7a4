"""Reading over AMQP 0-9-1 what hermes sends to RabbitMQ, and looking at the queue."""

from __future__ import annotations

from functools import partial

from bridge.core.ports import Patience
from bridge.sources.broker.amqp import open_link
from bridge.sources.broker.check import Look
from bridge.sources.broker.check_queue import look_at_queue
from bridge.sources.broker.link import Opener
from bridge.sources.rucio.config import RucioConfig


def opener(config: RucioConfig) -> Opener:
    """Return what opens a link to the queue."""
    return partial(open_link, config, str(config.queue), config.declare)


def look(config: RucioConfig, key: str, patience: Patience) -> Look:
    """Return what looks at the queue, for `check`."""
    return partial(
        look_at_queue,
        config=config,
        queue=str(config.queue),
        declare=config.declare,
        key=key,
        patience=patience,
    )
