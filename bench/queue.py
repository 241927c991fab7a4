"""What answers in SQS's place: one queue behind its wire protocol, so thin that it is not what is measured.

The protocol is AWS JSON 1.0 (https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html), of whose
operations it knows those of a consumer. Nobody sends: the messages are made up front. Signatures are not
looked at, and any name or URL is the queue's. The bench asks it over HTTP too, under `/bench`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.http import Connection, as_json, serve
from bench.records import body, notification

_TARGET = re.compile(rb"\r\nx-amz-target: *AmazonSQS\.(\w+)", re.IGNORECASE)
_HOST = re.compile(rb"\r\nhost: *([^\r]+)", re.IGNORECASE)
_SENDER = "AIDAIT2UOQQY3AUEKVGXU"


@dataclass(slots=True)
class Message:
    """One message: all of it that does not change is JSON already."""

    number: int
    head: bytes
    receives: int = 0
    first_received: int = 0
    """ms since 1970."""
    hidden: object | None = None
    """What made it invisible last; None while it is visible."""

    @classmethod
    def of(cls, number: int, text: bytes) -> Message:
        """Make message `number`, with `text` as its body."""
        told = {
            "MessageId": str(uuid.UUID(int=number, version=4)),
            "MD5OfBody": hashlib.md5(text, usedforsecurity=False).hexdigest(),
            "Body": text.decode(),
            "Attributes": {"SenderId": _SENDER, "SentTimestamp": str(int(time.time() * 1000))},
        }
        return cls(number, json.dumps(told).encode().removesuffix(b"}}"))

    def received(self) -> bytes:
        """Give it to one more receiver."""
        self.receives += 1
        self.first_received = self.first_received or int(time.time() * 1000)
        return (
            b'%b, "ApproximateReceiveCount": "%d", "ApproximateFirstReceiveTimestamp": "%d"}, '
            b'"ReceiptHandle": "%d-%d"}'
        ) % (self.head, self.receives, self.first_received, self.number, self.receives)


class RefusedError(Exception):
    """A call, or an entry of one, is not done: holds SQS's code."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A receive that waits for messages."""

    wanted: int
    visibility: float
    answer: Callable[[bytes], None]
    end: asyncio.TimerHandle | None = None


class Queue:
    """The messages, and what was done with them."""

    def __init__(self, messages: int, visibility: float, text: Callable[[int], bytes] = body) -> None:
        """Hold messages 0 to `messages` - 1, each with the body that `text` gives for its number."""
        self.visibility = visibility
        self._messages = {number: Message.of(number, text(number)) for number in range(messages)}
        self._visible = deque(self._messages.values())
        """Each once, and some that are deleted."""
        self._waiting: deque[Waiting] = deque()
        self._awaited: dict[int, asyncio.Event] = {}
        self._receives = self._received = self._deleted = 0

    def attributes(self) -> dict[str, str]:
        """Give what GetQueueAttributes tells."""
        visible = sum(message.hidden is None for message in self._messages.values())
        return {
            "VisibilityTimeout": str(int(self.visibility)),
            "ApproximateNumberOfMessages": str(visible),
            "ApproximateNumberOfMessagesNotVisible": str(len(self._messages) - visible),
            "MessageRetentionPeriod": "345600",
        }

    def receive(self, waiting: Waiting, seconds: float) -> None:
        """Answer with messages: now, when some are there, or with none after so long."""
        self._receives += 1
        self._waiting.append(waiting)
        self._serve()
        if waiting in self._waiting:
            waiting.end = asyncio.get_running_loop().call_later(seconds, self._in_vain, waiting)

    def leave(self, waiting: Waiting) -> None:
        """Nobody is there any more."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        if waiting.end is not None:
            waiting.end.cancel()

    def _in_vain(self, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        waiting.answer(b"{}")

    def _serve(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            taken: list[Message] = []
            while self._visible and len(taken) < first.wanted:
                message = self._visible.popleft()
                if message.number in self._messages:
                    taken.append(message)
            if not taken:
                return
            self.leave(first)
            self._received += len(taken)
            first.answer(b'{"Messages": [%b]}' % b", ".join([message.received() for message in taken]))
            self._hide(taken, first.visibility)

    def _hide(self, messages: Sequence[Message], seconds: float) -> None:
        hidden = object()
        for message in messages:
            message.hidden = hidden
        asyncio.get_running_loop().call_later(seconds, self._show, messages, hidden)

    def _show(self, messages: Sequence[Message], hidden: object) -> None:
        for message in messages:
            if message.hidden is hidden:
                message.hidden = None
                self._visible.append(message)
        self._serve()

    def change(self, receipt: str, seconds: float) -> None:
        """Keep a message invisible from now on for so long; 0 shows it. Raises RefusedError."""
        message = self._of(receipt)
        if message is None or message.hidden is None:
            raise RefusedError("MessageNotInflight")
        if seconds > 0:
            self._hide([message], seconds)
        else:
            self._show([message], message.hidden)

    def delete(self, receipt: str) -> None:
        """Delete a message; that it is gone already is no error, as in SQS. Raises RefusedError."""
        message = self._of(receipt)
        if message is not None:
            del self._messages[message.number]
            self._deleted += 1
            if (awaited := self._awaited.get(self._deleted)) is not None:
                awaited.set()

    def _of(self, receipt: str) -> Message | None:
        number, _, receives = receipt.partition("-")
        if not (number.isdecimal() and receives.isdecimal()):
            raise RefusedError("ReceiptHandleIsInvalid")
        message = self._messages.get(int(number))
        if message is not None and message.receives != int(receives):
            raise RefusedError("ReceiptHandleIsInvalid")
        return message

    async def after(self, deleted: int) -> dict[str, int]:
        """Wait until so many messages are deleted; give what was done by then.

        `receives` counts calls, `received` and `deleted` messages.
        """
        if self._deleted < deleted:
            await self._awaited.setdefault(deleted, asyncio.Event()).wait()
        return {"receives": self._receives, "received": self._received, "deleted": self._deleted}


class Server(Connection):
    """One connection."""

    queue = Queue(0, 30)

    def __init__(self) -> None:
        super().__init__()
        self._waiting: Waiting | None = None

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._waiting is not None:
            self.queue.leave(self._waiting)

    def requested(self, received: bytearray, head: int, end: int) -> None:
        target = _TARGET.search(received, 0, head)
        if target is None:
            self.tell(received)
            return
        operation, given = target[1].decode("ascii"), json.loads(received[head + 4 : end])
        queue = self.queue
        if operation == "ReceiveMessage":
            self._waiting = Waiting(
                given.get("MaxNumberOfMessages", 1),
                given.get("VisibilityTimeout", queue.visibility),
                self._answer,
            )
            queue.receive(self._waiting, given.get("WaitTimeSeconds", 0))
        elif operation == "GetQueueUrl":
            host = _HOST.search(received, 0, head)
            assert host is not None
            self._answer({"QueueUrl": f"http://{host[1].decode()}/123456789012/{given['QueueName']}"})
        elif operation == "GetQueueAttributes":
            self._answer({"Attributes": queue.attributes()})
        elif operation in _BATCHES:
            self._batch(given["Entries"], _BATCHES[operation])
        elif operation in _SINGLE:
            self._single(given, _SINGLE[operation])
        else:
            self._refuse("UnsupportedOperation")

    def _single(self, given: Mapping[str, Any], do: Callable[[Queue, Mapping[str, Any]], None]) -> None:
        try:
            do(self.queue, given)
        except RefusedError as refused:
            self._refuse(str(refused))
        else:
            self._answer({})

    def _batch(
        self, entries: Sequence[Mapping[str, Any]], do: Callable[[Queue, Mapping[str, Any]], None]
    ) -> None:
        done, failed = [], []
        for entry in entries:
            try:
                do(self.queue, entry)
                done.append({"Id": entry["Id"]})
            except RefusedError as refused:
                failed.append({"Id": entry["Id"], "Code": str(refused), "SenderFault": True})
        self._answer({"Successful": done, "Failed": failed})

    def _answer(self, answer: object) -> None:
        self.write(as_json(200, answer))

    def _refuse(self, code: str) -> None:
        self.write(as_json(400, {"__type": f"com.amazonaws.sqs#{code}", "message": code}))

    async def told(self, path: str, query: Mapping[str, str]) -> object:
        if path == "/bench/begin":
            text = notification if "notifications" in query else body
            Server.queue = Queue(int(query["messages"]), float(query["visibility"]), text)
        elif path == "/bench/after":
            return await self.queue.after(int(query["deleted"]))
        return {}


def _delete(queue: Queue, given: Mapping[str, Any]) -> None:
    queue.delete(given["ReceiptHandle"])


def _change(queue: Queue, given: Mapping[str, Any]) -> None:
    queue.change(given["ReceiptHandle"], given["VisibilityTimeout"])


_SINGLE = {"DeleteMessage": _delete, "ChangeMessageVisibility": _change}
_BATCHES = {f"{operation}Batch": do for operation, do in _SINGLE.items()}


if __name__ == "__main__":
    uvloop.run(serve(Server))
