"""What no good server says at will: throttling, server errors, refusals of single entries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.core import steady
from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.sqs import answers, reader
from bridge.telemetry.metrics import Metrics
from bridge.testing import opened, settle, until
from tests.servers.scripted_sqs import Answer, ScriptedSqs, refusal, served


@pytest.fixture
async def server() -> AsyncIterator[ScriptedSqs]:
    async with served() as server:
        yield server


async def test_throttling_slows_down_and_is_told_but_loses_no_source(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOST_SECONDS", 0.2)
    source = server.source()
    server.answers["ReceiveMessage"] = lambda _: refusal("RequestThrottled", "slow down")
    async with opened(source) as hands:
        await until(lambda: source.problems())
        await hands.takes_nothing(1)
        assert "RequestThrottled (slow down)" in source.problems()[0]
        assert server.calls["ReceiveMessage"] < 30
        del server.answers["ReceiveMessage"]
        server.messages = ["a"]
        await hands.take(1)
        assert "over for" in source.problems()[0], "told until it has held"
        monkeypatch.setattr(steady, "HELD_SECONDS", 0)
        assert source.problems() == []


async def test_server_errors_are_retried_and_then_a_lost_source(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["ReceiveMessage"] = lambda _: refusal("InternalError", status=503)
    async with opened(server.source()) as hands:
        await until(lambda: server.calls["ReceiveMessage"] > 3)
        del server.answers["ReceiveMessage"]
        server.messages = ["a"]
        [kept] = await hands.take(1)
        monkeypatch.setattr(reader, "LOST_SECONDS", 0.2)
        server.answers["ReceiveMessage"] = lambda _: refusal("InternalError", status=503)
        with pytest.raises(SourceLost, match="status 503"):
            await hands.take(1)
        assert kept.outcome is Outcome.RELEASED


async def test_an_answer_that_tells_nothing_of_a_message_deletes_nothing(server: ScriptedSqs) -> None:
    server.messages = ["a", "b"]
    odd: list[dict[str, Any]] = [{}, {"Successful": [{"Id": "7"}], "Failed": [{}, {"Id": None}]}]
    server.answers["DeleteMessageBatch"] = lambda asked: (
        web.json_response(odd.pop())
        if odd
        else web.json_response({"Successful": [{"Id": each["Id"]} for each in asked["Entries"]]})
    )
    async with opened(server.source()) as hands:
        settle(await hands.take(2))
        await until(lambda: server.calls["DeleteMessageBatch"] == 3)
        assert stale(hands) == 0


def stale(hands: Any) -> float | None:
    value: float = hands.source._metrics.stale_receipts.value
    return value


PAGES = {
    "page": lambda _: web.Response(text="<html>Please log in", content_type="text/html"),
    "list": lambda _: web.json_response([]),
    "nothing": lambda _: web.Response(text="null", content_type="application/x-amz-json-1.0"),
    "deep": lambda _: web.Response(text="[" * 100_000, content_type="application/x-amz-json-1.0"),
}


async def test_a_queue_without_attributes_is_none(server: ScriptedSqs) -> None:
    server.attributes = {}
    with pytest.raises(SourceLost, match="no answer of SQS's"):
        async with opened(server.source()):
            pass


@pytest.mark.parametrize("text", ["soon", "-1", "1e3", "9" * 30, ""])
async def test_attributes_that_are_no_numbers_are_not_known(server: ScriptedSqs, text: str) -> None:
    metrics = Metrics()
    server.attributes = dict.fromkeys(("VisibilityTimeout", "ApproximateNumberOfMessages"), text)
    server.messages = ["a"]
    async with opened(server.source(metrics=metrics)) as hands:
        await hands.take(1)
        assert metrics.registry.get_sample_value("bridge_source_lag", {"source": "bucket"}) is None


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("action", ["GetQueueUrl", "GetQueueAttributes", "ReceiveMessage"])
async def test_what_is_no_answer_of_sqs_is_a_lost_source(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch, action: str, page: Answer
) -> None:
    monkeypatch.setattr(reader, "LOST_SECONDS", 0.2)
    server.answers[action] = page
    with pytest.raises(SourceLost, match=r"no answer of SQS's|in place of SQS's answer"):
        async with opened(server.source()) as hands:
            await hands.take(1)
    assert server.calls[action] < 30


async def test_a_web_page_deletes_nothing(server: ScriptedSqs) -> None:
    server.messages = ["a"]
    server.answers["DeleteMessageBatch"] = PAGES["page"]
    async with opened(server.source()) as hands:
        [message] = await hands.take(1)
        message.settle(Outcome.ACCEPTED)
        await until(lambda: server.calls["DeleteMessageBatch"] > 1)
        del server.answers["DeleteMessageBatch"]
        await until(lambda: server.deleted == ["a"])


async def test_a_server_that_holds_back_no_empty_answer_is_asked_with_pauses(server: ScriptedSqs) -> None:
    server.answers["ReceiveMessage"] = lambda _: web.json_response({})
    async with opened(server.source(pollers=1)) as hands:
        await hands.takes_nothing(1)
    assert server.calls["ReceiveMessage"] < 15


async def test_no_reason_tells_a_credential(server: ScriptedSqs) -> None:
    # As SQS answers: the canonical request with its signed headers stands in the message.
    server.answers["GetQueueUrl"] = lambda asked: refusal(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided.\n\n"
        "The Canonical String for this request should have been\n'POST\n/\n\n"
        "x-amz-security-token:correct-horse\n'",
        403,
    )
    with pytest.raises(SourceLost) as raised:
        async with opened(server.source()):
            pass
    assert "SignatureDoesNotMatch (The request signature" in str(raised.value)
    assert "correct-horse" not in str(raised.value)


async def test_a_refused_permission_is_named(server: ScriptedSqs) -> None:
    server.answers["GetQueueAttributes"] = lambda _: refusal("AccessDenied", "not authorized", 403)
    with pytest.raises(SourceLost, match=r"GetQueueAttributes refused: AccessDenied \(not authorized\)"):
        async with opened(server.source()):
            pass


async def test_deletes_go_by_ten_and_only_what_failed_is_tried_again(server: ScriptedSqs) -> None:
    server.messages = [f"m{n}" for n in range(25)]
    tries: Counter[str] = Counter()

    def partly(asked: dict[str, Any]) -> web.Response:
        assert len(asked["Entries"]) <= 10
        done, failed = [], []
        for entry in asked["Entries"]:
            tries[entry["ReceiptHandle"]] += 1
            if entry["ReceiptHandle"] == "m3" and tries["m3"] < 3:
                failed.append({"Id": entry["Id"], "Code": "InternalError", "SenderFault": False})
            else:
                done.append({"Id": entry["Id"]})
        return web.json_response({"Successful": done, "Failed": failed})

    server.answers["DeleteMessageBatch"] = partly
    async with opened(server.source()) as hands:
        settle(await hands.take(25))
        await until(lambda: tries["m3"] == 3)
        assert server.calls["DeleteMessageBatch"] == 3 + 2
        assert set(tries) == {f"m{n}" for n in range(25)}
        assert sum(tries.values()) == 25 + 2


async def test_a_delete_is_tried_so_often_and_no_more(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ATTEMPTS", 3)
    server.messages = ["a"]
    server.answers["DeleteMessageBatch"] = lambda asked: web.Response(
        status=500, text=json.dumps({"message": asked["Entries"][0]["Id"]})
    )
    with capture_logs() as lines:
        async with opened(server.source()) as hands:
            settle(await hands.take(1))
            await until(lambda: any("can't be answered" in line["event"] for line in lines))
            await hands.takes_nothing(0.3)
            assert server.calls["DeleteMessageBatch"] == 3


async def test_a_large_notification_goes_in_pieces_that_fit_the_slots(server: ScriptedSqs) -> None:
    records = [{"eventSource": "aws:s3", "n": n} for n in range(7)]

    def received(_asked: dict[str, Any]) -> web.Response:
        del server.answers["ReceiveMessage"]
        body = json.dumps({"Records": records})
        return web.json_response({"Messages": [{"MessageId": "m", "ReceiptHandle": "m", "Body": body}]})

    server.answers["ReceiveMessage"] = received
    async with opened(server.source(), limit=3) as hands:
        while len(hands.seen) < 7:
            assert not server.deleted
            settle(await hands.take(1))  # asserts that there were slots
        await until(lambda: server.deleted == ["m"])
