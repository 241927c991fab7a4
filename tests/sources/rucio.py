"""What tests of the Rucio source need: a source of each broker, and messages to it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bridge.sources.rucio import KIND
from bridge.sources.rucio.config import RucioConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import keeping
from tests.servers import activemq as active
from tests.servers import hermes
from tests.servers import rabbitmq as rabbit
from tests.servers.activemq import ActiveMQ
from tests.servers.rabbitmq import RabbitMQ


def source(metrics: Metrics | None = None, **keys: Any) -> Any:
    config = RucioConfig.model_validate({**keys, "type": "rucio"})
    return KIND.build(config, "closed", (metrics or Metrics()).source("closed"), keeping())


def on_rabbit(broker: RabbitMQ, **keys: Any) -> dict[str, Any]:
    return {
        "protocol": "amqp",
        "brokers": f"127.0.0.1:{broker.port}",
        "virtual_host": rabbit.VIRTUAL_HOST,
        "username": rabbit.USERNAME,
        "password": rabbit.PASSWORD,
        **keys,
    }


def on_active(broker: ActiveMQ, **keys: Any) -> dict[str, Any]:
    return {
        "protocol": "stomp",
        "brokers": f"127.0.0.1:{broker.stomp_port}",
        "username": active.USERNAME,
        "password": active.PASSWORD,
        **keys,
    }


async def to_rabbit(broker: RabbitMQ, destination: str, *messages: Any) -> None:
    await hermes.publish(
        ("127.0.0.1", broker.stomp_port),
        destination,
        messages,
        username=rabbit.USERNAME,
        password=rabbit.PASSWORD,
        virtual_host=rabbit.VIRTUAL_HOST,
    )


async def to_active(broker: ActiveMQ, destination: str, *messages: Any) -> None:
    await hermes.publish(
        ("127.0.0.1", broker.stomp_port),
        destination,
        messages,
        username=active.USERNAME,
        password=active.PASSWORD,
    )


def behind(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """Have the DNS give `addresses` for `name`; without any, it knows of none."""
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *more: Any, **hints: Any) -> Any:
        if host != name:
            return real(host, port, *more, **hints)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in each], socket.SOCK_STREAM, 6, "", (each, port))
            for each in (*addresses, *addresses)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
