"""Sends messages as Rucio's hermes does: by stomp.py, with its frame and its headers.

From rucio, `lib/rucio/daemons/hermes/hermes.py` (`deliver_to_activemq`): a `Connection12`, a body of
`event_type` (in lower case), `payload` and `created_at`, and the headers `persistent` and `event_type`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import stomp

_BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def message(kind: str = "close", *, number: int = 0, **payload: Any) -> dict[str, Any]:
    """Make what hermes reads from Rucio's database."""
    payload = {"scope": "user.jdoe", "name": f"dataset-{number}", "n": number, **payload}
    created = (_BEGIN + timedelta(milliseconds=number)).replace(tzinfo=None)
    return {"event_type": kind.lower(), "payload": payload, "created_at": str(created)}


def numbered(count: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [message(number=number, **more) for number in range(first, first + count)]


def send(
    address: tuple[str, int],
    destination: str,
    messages: Sequence[dict[str, Any] | bytes],
    *,
    username: str,
    password: str,
    virtual_host: str = "/",
) -> None:
    """Send `messages`; bytes as they are. Returns once the broker has them all."""
    connection = stomp.Connection12(host_and_ports=[address], vhost=virtual_host, reconnect_attempts_max=1)
    receipts = stomp.listener.WaitingListener(receipt := uuid4().hex)
    connection.set_listener("", receipts)
    connection.connect(username, password, wait=True)
    try:
        for told in messages:
            if isinstance(told, bytes):
                connection.send(body=told, destination=destination, headers={"persistent": "true"})
                continue
            connection.send(
                body=json.dumps(told),
                destination=destination,
                headers={"persistent": "true", "event_type": told["event_type"]},
            )
    finally:
        connection.disconnect(receipt)
        receipts.wait_on_receipt()


async def publish(
    address: tuple[str, int], destination: str, messages: Sequence[dict[str, Any] | bytes], **more: Any
) -> None:
    """Send without holding up the event loop."""
    await asyncio.to_thread(send, address, destination, messages, **more)
