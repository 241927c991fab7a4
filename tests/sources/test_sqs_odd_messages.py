"""Messages that can't be answered or read, and those that have nearly been received too often."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.core.delivery import Outcome
from bridge.sources import opening
from bridge.telemetry.metrics import Metrics
from bridge.testing import opened, settle, until
from tests.servers.scripted_sqs import ScriptedSqs, served


@pytest.fixture
async def server() -> AsyncIterator[ScriptedSqs]:
    async with served() as server:
        yield server


ODD_MESSAGES: dict[str, dict[str, Any]] = {
    "no id": {"ReceiptHandle": "r", "Body": "b"},
    "no receipt": {"MessageId": "m", "Body": "b"},
    "an id that is no text": {"MessageId": 7, "ReceiptHandle": "r", "Body": "b"},
    "nothing": {},
}


@pytest.mark.parametrize("odd", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
async def test_a_message_that_can_not_be_answered_is_left_to_the_queue_and_stops_none_beside_it(
    server: ScriptedSqs, odd: dict[str, Any]
) -> None:
    metrics = Metrics()
    server.messages = ["a", odd, "b"]
    async with opened(server.source(metrics=metrics)) as hands:
        assert [each.event.id for each in await hands.take(2)] == ["a", "b"]
        labels = {"source": "bucket", "reason": "unreadable"}
        assert metrics.registry.get_sample_value("bridge_events_filtered_total", labels) == 1
        settle(hands.seen)
        await until(lambda: sorted(server.deleted) == ["a", "b"])


async def test_a_body_that_is_no_answer_to_anything_is_an_event_or_has_a_fault(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t"}
    bodies: list[Any] = [
        "[" * 100_000,
        json.dumps({"Records": [{"eventSource": "aws:s3"}]}),
        "half a \ud800 pair",
        7,
        None,
        json.dumps(empty),
        "good",
    ]
    server.messages = [
        {"MessageId": f"m{n}", "ReceiptHandle": f"m{n}", "Body": body} for n, body in enumerate(bodies)
    ]
    async with opened(server.source()) as hands:
        taken = {each.event.id.partition("#")[0]: each for each in await hands.take(len(bodies))}
        assert [taken[f"m{n}"].fault is not None for n in range(len(bodies))] == [
            False,
            True,
            False,
            *[True] * 3,
            False,
        ]
        assert taken["m6"].event.data == b"good"

        def broken(*_: Any) -> Any:
            raise LookupError("a defect")

        monkeypatch.setattr(opening, "open_message", broken)
        server.messages = ["x"]
        [odd] = await hands.take(1)
        assert odd.fault == "can't be taken apart: LookupError: a defect"


@pytest.mark.parametrize(
    ("most", "counts"),
    [
        (10, {1: False, 4: False, 5: True, 11: True}),
        (3, {1: False, 2: True}),
        ("4", {1: False, 2: True}),
        (1, {1: True}),
        (None, {1: False, 1000: False}),
        ("many", {1000: False}),
    ],
)
async def test_what_has_half_of_its_receipts_used_up_is_nearly_dead(
    server: ScriptedSqs, most: Any, counts: dict[int, bool]
) -> None:
    if most is not None:
        server.attributes["RedrivePolicy"] = json.dumps({"maxReceiveCount": most})
    server.messages = [
        {
            "MessageId": str(count),
            "ReceiptHandle": str(count),
            "Body": "b",
            "Attributes": {"ApproximateReceiveCount": str(count)},
        }
        for count in counts
    ]
    async with opened(server.source()) as hands:
        taken = await hands.take(len(counts))
        assert {int(each.event.id): each.nearly_dead for each in taken} == counts


async def test_followers_that_are_nearly_dead_are_held_until_their_turn_and_not_given_back(
    server: ScriptedSqs,
) -> None:
    server.attributes |= {"FifoQueue": "true", "RedrivePolicy": json.dumps({"maxReceiveCount": 4})}
    server.messages = [
        {
            "MessageId": name,
            "ReceiptHandle": name,
            "Body": name,
            "Attributes": {"ApproximateReceiveCount": count, "MessageGroupId": "g"},
        }
        for name, count in (("first", "1"), ("second", "3"), ("third", "3"))
    ]
    async with opened(server.source(pollers=1)) as hands:
        for name, is_nearly_dead in (("first", False), ("second", True), ("third", True)):
            [delivery] = await hands.take(1)
            assert (delivery.event.id, delivery.nearly_dead) == (name, is_nearly_dead)
            await hands.takes_nothing(0.1)
            delivery.settle(Outcome.PARKED)
        await until(lambda: server.deleted == ["first", "second", "third"])
        assert not server.changes(visibility=0)
