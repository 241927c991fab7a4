"""An address of Rucio's brokers that is tried again and again."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import pytest
import structlog

from bridge.sources.broker import reader
from bridge.sources.broker.link import Link, LinkLost, Opener
from bridge.sources.broker.message import Tag, Unwanted
from bridge.sources.rucio.config import RucioConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import Room, until


class Session:
    """Such as one with its certificate authorities, whose error holds it."""

    error: LinkLost


class Endless:
    """A link that nothing ends."""

    async def lost(self) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def answer(self, done: Sequence[Tag]) -> None:
        """Take what is acknowledged."""

    async def waiting(self) -> int | None:
        return None

    async def close(self) -> None:
        """Hang up."""


def reading_by(open_link: Opener) -> reader.Reader:
    keys = {"type": "rucio", "protocol": "amqp", "brokers": "127.0.0.1:1", "queue": "q"}
    config = RucioConfig.model_validate({**keys, "username": "oscar", "password": "hunter2"})
    return reader.Reader(
        config,
        open_link,
        read=lambda message: Unwanted("nothing"),
        how="none",
        slots=Room(),
        metrics=Metrics().source("closed"),
        log=structlog.get_logger(),
    )


async def test_what_an_attempt_at_a_link_leaves_in_reference_cycles_is_gone_at_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "LONGEST_PAUSE", 0.06)
    sessions: list[weakref.ref[Session]] = []
    left: list[int] = []

    @asynccontextmanager
    async def open_link(*_: Any) -> AsyncIterator[Link]:
        left.append(sum(session() is not None for session in sessions))
        session = Session()
        session.error = LinkLost("refused")
        sessions.append(weakref.ref(session))
        raise session.error
        yield

    reading = reading_by(open_link)
    gc.disable()  # as seldom as full collections are
    task = asyncio.create_task(reading.run())
    try:
        await until(lambda: len(left) > 5)
    finally:
        gc.enable()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert set(left) == {0}


@pytest.mark.parametrize("returns", [False, True], ids=["raises another reason", "returns"])
async def test_a_client_that_keeps_a_cancellation_to_itself_does_not_hold_up_the_end(returns: bool) -> None:
    """As aiormq does, which raises why its channel was closed, when it is cancelled at that very moment."""
    opening = asyncio.Event()

    @asynccontextmanager
    async def open_link(*_: Any) -> AsyncIterator[Link]:
        try:
            opening.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not returns:
                raise LinkLost("the channel was closed") from None
        yield Endless()

    task = asyncio.create_task(reading_by(open_link).run())
    await opening.wait()
    task.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([task])
    assert task.cancelled()
