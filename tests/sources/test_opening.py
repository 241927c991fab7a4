"""What is handed over of messages that hold many events."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.sources import opening
from bridge.sources.opening import Opening
from bridge.sources.storage_events import MOST_RECORDS, open_message
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.sources.storage import from_ceph


def of(*names: str) -> Delivery:
    """A message with a record for each of the objects `names`."""
    records = [record for name in names for record in from_ceph(name)["Records"]]
    return Delivery(Event(id=names[0], source="u", type="t", data=json.dumps({"Records": records}).encode()))


@pytest.fixture
def offered() -> list[Delivery]:
    return []


@pytest.fixture
def taker(offered: list[Delivery]) -> Opening:
    return Opening("auto", offered.append, Metrics().source("uploads"), structlog.get_logger())


class Slow:
    """Opens when it is told to."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.began = 0

    def __call__(self, *arguments: Any) -> Any:
        self.began += 1
        assert self.goes_on.wait(30), "the loop is held up"
        return open_message(*arguments)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(opening, "open_message", slow)
    return slow


def keys(offered: list[Delivery]) -> list[str]:
    return [delivery.event.attributes["key"] for delivery in offered]


MANY = [f"large/{n}" for n in range(MOST_RECORDS)]


async def test_a_large_message_leaves_the_loop_to_others_and_what_follows_comes_after_it(
    taker: Opening, offered: list[Delivery], slow: Slow
) -> None:
    running = asyncio.create_task(taker.run())
    taker.take(of(*MANY))
    taker.take(of("small"))
    assert taker.waiting == 2
    await until(lambda: slow.began)
    await asyncio.sleep(0)
    assert not offered
    slow.goes_on.set()
    await until(lambda: not taker.waiting)
    taker.take(of("at once"))
    assert keys(offered) == [*MANY, "small", "at once"]
    running.cancel()


async def test_of_a_message_that_is_given_back_while_it_is_opened_nothing_is_open(
    taker: Opening, offered: list[Delivery], slow: Slow
) -> None:
    message, next_one = of(*MANY), of("next")
    taker.take(message)
    taker.take(next_one)
    finishing = asyncio.create_task(taker.finish())
    await until(lambda: slow.began)
    for delivery in (message, next_one):
        delivery.settle(Outcome.RELEASED)
    slow.goes_on.set()
    await finishing
    assert slow.began == 1, "what is settled is not opened"
    assert {delivery.outcome for delivery in offered} <= {Outcome.RELEASED}
