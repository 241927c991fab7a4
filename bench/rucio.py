"""The brokers that Rucio's events come from: RabbitMQ and ActiveMQ themselves, from their Debian packages.

They are those of the tests, and so is what fills them: stomp.py, as hermes uses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from bench.records import note
from tests.servers import activemq, hermes, rabbitmq
from tests.servers.debian import PACKAGES


@dataclass(frozen=True, slots=True)
class Session:
    """One broker, read by one protocol."""

    broker: rabbitmq.RabbitMQ | activemq.ActiveMQ
    protocol: Literal["amqp", "stomp"]

    @property
    def name(self) -> str:
        """For a person, and for the table."""
        return f"{type(self.broker).__name__} ({self.protocol.upper()})"

    async def fill(self, queue: str, events: int) -> None:
        """Make `queue`, which is a quorum queue in RabbitMQ, and put so many events into it."""
        more = {}
        if isinstance(self.broker, rabbitmq.RabbitMQ):
            await self.broker.declare(queue, x_queue_type="quorum")
            more["virtual_host"] = rabbitmq.VIRTUAL_HOST
        await hermes.publish(
            (self.broker.host, self.broker.stomp_port),
            self._destination(queue),
            [_closed(number) for number in range(events)],
            username=self._username,
            password=self._password,
            **more,
        )

    def source(self, queue: str) -> str:
        """Give the source of `queue`, for CONFIGURATION."""
        port = self.broker.stomp_port
        told: dict[str, Any] = {
            "type": "rucio",
            "protocol": self.protocol,
            "username": self._username,
            "password": self._password,
        }
        if isinstance(self.broker, rabbitmq.RabbitMQ):
            told["virtual_host"] = rabbitmq.VIRTUAL_HOST
            port = self.broker.port if self.protocol == "amqp" else port
        told["brokers"] = f"{self.broker.host}:{port}"
        told |= {"queue": queue} if self.protocol == "amqp" else {"destination": self._destination(queue)}
        return json.dumps(told)  # which is YAML, too

    def _destination(self, queue: str) -> str:
        """Give the queue's name in STOMP; RabbitMQ would take `/queue/…` for a classic queue of its own."""
        return f"/{'amq/' if isinstance(self.broker, rabbitmq.RabbitMQ) else ''}queue/{queue}"

    @property
    def _username(self) -> str:
        return rabbitmq.USERNAME if isinstance(self.broker, rabbitmq.RabbitMQ) else activemq.USERNAME

    @property
    def _password(self) -> str:
        return rabbitmq.PASSWORD if isinstance(self.broker, rabbitmq.RabbitMQ) else activemq.PASSWORD


@contextmanager
def readings(say: Callable[[str], None]) -> Iterator[list[Session]]:
    """Run the brokers that are installed while inside; give what can be read, and `say` what is left out.

    It holds up the event loop until they listen: nothing is measured meanwhile. Raises RuntimeError when one
    does not.
    """
    with ExitStack() as running:
        found: list[Session] = []
        if _installed("rabbitmq-server", say):
            rabbit = running.enter_context(rabbitmq.RabbitMQ())
            found += [Session(rabbit, "amqp"), Session(rabbit, "stomp")]
        if _installed("activemq", say):
            found.append(Session(running.enter_context(activemq.ActiveMQ()), "stomp"))
        yield found


def _installed(package: str, say: Callable[[str], None]) -> bool:
    if PACKAGES[package].exists():
        return True
    say(
        f"rucio: left out what needs the Debian package {package}, which is not installed "
        "(`python -m tests.servers.debian` does it)"
    )
    return False


def _closed(number: int) -> dict[str, Any]:
    """Give what hermes sends of a dataset that was closed: some 300 to 1,000 bytes."""
    return hermes.message(number=number, account="jdoe", custom_metadata={"note": note(number)})
