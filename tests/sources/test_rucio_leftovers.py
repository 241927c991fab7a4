"""An address of Rucio's brokers that is tried again and again."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import structlog

from bridge.sources.broker import reader
from bridge.sources.broker.link import Link, LinkLost
from bridge.sources.broker.message import Unwanted
from bridge.sources.rucio.config import RucioConfig
from bridge.telemetry.metrics import Metrics
from tests.sources.reading import Room, until


class Session:
    """Such as one with its certificate authorities, whose error holds it."""

    error: LinkLost


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

    keys = {"type": "rucio", "protocol": "amqp", "brokers": "127.0.0.1:1", "queue": "q"}
    config = RucioConfig.model_validate({**keys, "username": "oscar", "password": "hunter2"})
    reading = reader.Reader(
        config,
        open_link,
        read=lambda message: Unwanted("nothing"),
        how="none",
        slots=Room(),
        metrics=Metrics().source("closed"),
        log=structlog.get_logger(),
    )
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
