"""A subscription that ticks. After `restful/events/streams/metronome/*.java`."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from typing import Any

from bridge.sandbox.dcache.channel import Channel, url_of
from bridge.sandbox.dcache.errors import RefusalError

DESCRIPTION = "a configurable stream of messages"
_LONGEST_DELAY = 300.0
_MOST_HZ = 1_000_000.0
_FIELDS = {"frequency": (1 / _LONGEST_DELAY, _MOST_HZ), "delay": (1 / _MOST_HZ, _LONGEST_DELAY)}
"""In Hz, in seconds: the least, the most."""


class Metronome:
    """Sends its message again and again, `count` times if that is not 0. Each request makes another."""

    kind = "metronome"

    def __init__(self, channel: Channel, document: object, dice: random.Random) -> None:
        """Raises RefusalError (400) for what is no selector."""
        self._document = _checked(document)
        self.identity = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        self.url = url_of(channel.url, self.kind, self.identity)
        self._channel = channel
        frequency = self._document.get("frequency")
        self._delay = 1 / frequency if frequency is not None else self._document["delay"]
        self._count = 0
        self._due = asyncio.get_running_loop().time()
        self._timer = self._next()

    def ended(self) -> None:
        """The subscription is over; unlike a watch it says no more."""
        self._timer.cancel()

    def selector(self) -> dict[str, object]:
        """The selector as it was supplied."""
        return dict(self._document)

    def _next(self) -> asyncio.TimerHandle:
        self._due += self._delay
        return asyncio.get_running_loop().call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._count += 1
        message = self._document.get("message", "tick").replace("${count}", str(self._count))
        message = message.replace("${username}", self._channel.owner)
        self._timer = self._next()
        self._channel.tell(self, json.dumps(message))
        if self._count == self._document.get("count", 0):
            self._channel.close_subscription(self)


def _checked(document: object) -> dict[str, Any]:
    """Return a selector that may be used, as `Selector.validationError` has it."""
    if not isinstance(document, dict):
        raise _bad("not an object")
    for key in document:
        if key not in (*_FIELDS, "message", "count"):
            raise RefusalError(
                400, f'Bad selector value: Unrecognized field "{key}", not marked as ignorable'
            )
    given = [key for key in _FIELDS if document.get(key) is not None]
    if len(given) != 1:
        raise _bad('either "frequency" or "delay" must be specified, and not both')
    for key in given:
        least, most = _FIELDS[key]
        if not isinstance(document[key], int | float) or not least <= document[key] <= most:
            raise _bad(f'"{key}" is not from {least:g} to {most:g}')
    if not isinstance(document.get("message", "tick"), str) or document.get("message") == "":
        raise _bad('"message" cannot be empty')
    if not isinstance(document.get("count", 0), int) or document.get("count", 0) < 0:
        raise _bad('"count" must be non-negative')
    return document


def _bad(message: str) -> RefusalError:
    return RefusalError(400, f"Bad selector: {message}")
