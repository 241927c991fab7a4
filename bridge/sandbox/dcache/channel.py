"""A channel: a ring of events, at most one client, and a life-time without one. After `Channel.java`."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote

_ID = re.compile(r"-?[0-9]{1,10}")
_LARGEST_ID = 2**31


class Sink(Protocol):
    """One client's connection, as a channel sees it. Nothing here waits for the client."""

    def send(self, message: bytes) -> None:
        """Queue a message; a client that does not read makes the queue grow, in dCache too."""

    def close(self) -> None:
        """End the stream once the queue is written."""


class Subscription(Protocol):
    """What a channel keeps of a watch or a metronome."""

    identity: str
    url: str

    @property
    def kind(self) -> str:
        """The type of its events."""

    def ended(self) -> None:
        """The subscription is over: of a watch, take it away and tell IN_IGNORED."""

    def selector(self) -> dict[str, object]:
        """What `GET subscription` answers."""


class Channel:
    """One channel of one user."""

    def __init__(
        self,
        identity: str,
        owner: str,
        client_id: str | None,
        url: str,
        ring: int,
        timeout_seconds: float,
        gone: Callable[[Channel], None],
    ) -> None:
        self.identity = identity
        self.owner = owner
        self.client_id = client_id
        self.url = url
        """As the request that made the channel saw the server: the subscription URLs **in events** begin
        with it, while a `Location` follows the host of its own request (`EventResources.register`)."""
        self.timeout_seconds = timeout_seconds
        self.subscriptions: dict[str, Subscription] = {}
        self.closed = False
        self._gone = gone
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=ring)
        self._next_id = 0
        self._sink: Sink | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer()

    # --- events ---

    def tell(self, subscription: Subscription, event: str) -> None:
        """Give an event (JSON) the next id, keep it in the ring, and send it to the client there is."""
        if self.closed:
            return
        identity = self._next_id
        self._next_id += 1
        data = f'{{"event":{event},"subscription":"{subscription.url}"}}'
        message = f"event: {subscription.kind}\nid: {identity}\ndata: {data}\n\n".encode()
        self._ring.append((identity, message))
        if self._sink is not None:
            self._sink.send(message)

    def system(self, kind: str, subscription: Subscription | None = None) -> None:
        """Send a SYSTEM event: it has no id, and is neither kept nor replayed."""
        if self._sink is not None:
            document = {"type": kind}
            if subscription is not None:
                document["subscription"] = subscription.url
            self._sink.send(
                f"event: SYSTEM\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
            )

    def forget_events(self) -> None:
        """Empty the ring, as too many events between two connections do."""
        self._ring.clear()

    # --- the client ---

    def connect(self, sink: Sink, last_event_id: str) -> None:
        """A client has come. Its predecessor is told COMPETING_CLIENT and ended.

        With a `Last-Event-ID` that is a number, the ring is emptied **up to that event**: a second return
        with an older id is a loss, although the events were there at the first. When the event is not in
        the ring, all of the ring is dropped, one EVENT_LOSS is sent, and only new events follow. Without a
        number nothing is replayed and nothing dropped (`acceptConnection`).
        """
        if self._sink is not None:
            self.system("COMPETING_CLIENT")
            self._sink.close()
        self._stop_timer()
        self._sink = sink
        wanted = _event_id(last_event_id)
        if wanted is None:
            return
        while self._ring and self._ring[0][0] != wanted:
            self._ring.popleft()
        if not self._ring:
            self.system("EVENT_LOSS")
            return
        for identity, message in self._ring:
            if identity != wanted:
                sink.send(message)

    def disconnected(self, sink: Sink) -> None:
        """The client has gone: the life-time begins.

        dCache notices only when it next sends an event, so its channels live longer, never shorter.
        """
        if sink is self._sink:
            self._sink = None
            if not self.closed:
                self._start_timer()

    def set_timeout(self, seconds: float) -> None:
        """Change the life-time; one that is running starts again."""
        self.timeout_seconds = seconds
        if self._timer is not None:
            self._start_timer()

    # --- the end ---

    def close_subscription(self, subscription: Subscription) -> None:
        """End one subscription: SUBSCRIPTION_CLOSED first, and IN_IGNORED after, by the watch's own queue."""
        if self.subscriptions.pop(subscription.identity, None) is not None:
            self.system("SUBSCRIPTION_CLOSED", subscription)
            subscription.ended()

    def close(self) -> None:
        """End the channel and all its subscriptions, and the stream after what is queued."""
        if self.closed:
            return
        self.closed = True
        for subscription in list(self.subscriptions.values()):
            self.close_subscription(subscription)
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        self._ring.clear()
        self._stop_timer()
        self._gone(self)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self.timeout_seconds, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def url_of(channel: str, kind: str, identity: str) -> str:
    """The URL of a subscription: `UriBuilder.build` leaves a `+` and makes a slash `%2F`."""
    return f"{channel}/subscriptions/{kind}/{quote(identity, safe='+')}"


def _event_id(text: str) -> int | None:
    """What Guava's `Ints.tryParse` makes of it: a decimal number of 32 bits, or nothing."""
    if _ID.fullmatch(text) is None:
        return None
    number = int(text)
    return number if -_LARGEST_ID <= number < _LARGEST_ID else None
