"""Sends messages as Rucio's hermes does: by stomp.py, with its frame and its headers.

From rucio, `lib/rucio/daemons/hermes/hermes.py` (`deliver_to_activemq`): a `Connection12`, a body of
`event_type` (in lower case), `payload` and `created_at`, and the headers `persistent` and `event_type`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import stomp

_BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_CONFIRMED_SECONDS = 60.0


def message(kind: str = "close", *, number: int = 0, **payload: Any) -> dict[str, Any]:
    """Make what hermes reads from Rucio's database."""
    payload = {"scope": "user.jdoe", "name": f"dataset-{number}", "n": number, **payload}
    created = (_BEGIN + timedelta(milliseconds=number)).replace(tzinfo=None)
    return {"event_type": kind.lower(), "payload": payload, "created_at": str(created)}


def numbered(count: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [message(number=number, **more) for number in range(first, first + count)]


class _Confirmed(stomp.ConnectionListener):  # type: ignore[misc]  # stomp.py has no types
    """Tells when the broker has taken `count` messages, or has refused one."""

    def __init__(self, count: int) -> None:
        self.over = Event()
        self.refused = ""
        self.missing = count

    def on_receipt(self, _frame: Any) -> None:
        self.missing -= 1
        if self.missing == 0:
            self.over.set()

    def on_error(self, frame: Any) -> None:
        self.refused = f"{frame.headers} {frame.body}"
        self.over.set()

    def on_disconnected(self) -> None:
        self.over.set()


def send(
    address: tuple[str, int],
    destination: str,
    messages: Sequence[dict[str, Any] | bytes],
    *,
    username: str,
    password: str,
    virtual_host: str = "/",
) -> None:
    """Send `messages`; bytes as they are. Returns once the broker has them all, or raises RuntimeError.

    Each asks for a receipt, which hermes does not: a quorum queue of RabbitMQ can lose what is sent to it
    without confirmation (its documentation, "Quorum Queues", "Publisher confirms"), and what hermes loses is
    not the bridge's to deliver. RabbitMQ hands `receipt` on with the message's headers: one more attribute of
    the event.
    """
    if not messages:
        return
    connection = stomp.Connection12(host_and_ports=[address], vhost=virtual_host, reconnect_attempts_max=1)
    confirmed = _Confirmed(len(messages))
    connection.set_listener("", confirmed)
    connection.connect(username, password, wait=True)
    try:
        for number, told in enumerate(messages):
            headers = {"persistent": "true", "receipt": str(number)}
            if isinstance(told, bytes):
                connection.send(body=told, destination=destination, headers=headers)
                continue
            headers["event_type"] = told["event_type"]
            connection.send(body=json.dumps(told), destination=destination, headers=headers)
        if not confirmed.over.wait(_CONFIRMED_SECONDS) or confirmed.missing:
            raise RuntimeError(
                f"{confirmed.missing} of {len(messages)} messages were not confirmed {confirmed.refused}"
            )
    finally:
        connection.disconnect()


async def publish(
    address: tuple[str, int], destination: str, messages: Sequence[dict[str, Any] | bytes], **more: Any
) -> None:
    """Send without holding up the event loop."""
    await asyncio.to_thread(send, address, destination, messages, **more)
