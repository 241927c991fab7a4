"""What no good server says at will: throttling, server errors, refusals of single entries."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.core import steady
from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.core.event import Event
from bridge.sources.sqs import answers, reader
from bridge.sources.sqs.answers import Answers
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.held import Held
from bridge.telemetry.metrics import Metrics
from tests.sources.reading import opened, settle, until

Answer = Callable[[dict[str, Any]], web.Response]


class Server:
    """One queue in the JSON protocol of SQS; `answers` replace what it says, by action."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.hangs: Callable[[str, dict[str, Any]], bool] = lambda _action, _asked: False
        """Whether a call gets no answer, ever."""
        self.calls: Counter[str] = Counter()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.attributes = {"VisibilityTimeout": "30", "ApproximateNumberOfMessages": "0"}
        self.messages: list[str | dict[str, Any]] = []
        """Bodies, which stand for ids and receipts too, or whole messages."""
        self.deleted: list[str] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.Response:
        action = request.headers["X-Amz-Target"].rpartition(".")[2]
        self.calls[action] += 1
        asked = await request.json()
        self.asked.append((action, asked))
        if self.hangs(action, asked):
            await asyncio.Event().wait()
        if action in self.answers:
            return self.answers[action](asked)
        return web.json_response(await self.answer(action, asked))

    async def answer(self, action: str, asked: dict[str, Any]) -> dict[str, Any]:
        if action == "GetQueueUrl":
            return {"QueueUrl": f"{self.url}/1/{asked['QueueName']}"}
        if action == "GetQueueAttributes":
            return {"Attributes": self.attributes}
        if action == "ReceiveMessage":
            count = asked["MaxNumberOfMessages"]
            given, self.messages = self.messages[:count], self.messages[count:]
            if not given:
                await asyncio.sleep(0.05)
            return {
                "Messages": [
                    one if isinstance(one, dict) else {"MessageId": one, "ReceiptHandle": one, "Body": one}
                    for one in given
                ]
            }
        if action == "DeleteMessageBatch":
            assert len(asked["Entries"]) <= 10
            self.deleted += [entry["ReceiptHandle"] for entry in asked["Entries"]]
        return {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]], "Failed": []}

    def source(self, *, metrics: Metrics | None = None, **more: Any) -> Any:
        values = {
            "type": "sqs",
            "queue": "uploads",
            "region": "eu-west-1",
            "endpoint_url": self.url,
            "access_key_id": "AKIA",
            "secret_access_key": "hunter2",
            "session_token": "correct-horse",
            **more,
        }
        return SqsConfig.model_validate(values).build("bucket", (metrics or Metrics()).source("bucket"))


def refusal(code: str, message: str = "no", status: int = 400) -> web.Response:
    return web.json_response({"__type": f"com.amazonaws.sqs#{code}", "message": message}, status=status)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_post("/", server.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def test_throttling_slows_down_and_is_told_but_loses_no_source(
    server: Server, monkeypatch: pytest.MonkeyPatch
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
    server: Server, monkeypatch: pytest.MonkeyPatch
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


def changes(server: Server, visibility: int | None = None) -> Counter[str]:
    """How often the visibility of each message was changed, by its receipt."""
    return Counter(
        entry["ReceiptHandle"]
        for action, asked in server.asked
        if action == "ChangeMessageVisibilityBatch"
        for entry in asked["Entries"]
        if visibility is None or entry["VisibilityTimeout"] == visibility
    )


async def test_a_message_whose_time_is_up_is_let_go_though_the_call_to_put_it_off_hangs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CALL_SECONDS", 3600.0)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.1)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, _: action == "ChangeMessageVisibilityBatch"
    server.messages = [f"m{n}" for n in range(25)]
    async with opened(server.source()) as hands:
        taken = await hands.take(25)
        await until(lambda: server.calls["ChangeMessageVisibilityBatch"])
        await until(lambda: all(delivery.outcome is Outcome.RELEASED for delivery in taken), timeout=60)
        server.messages = ["m0"]  # its redelivery: alone in the bridge's hands
        [again] = await hands.take(1)
        assert again.event.id == "m0"


async def test_a_call_that_hangs_keeps_no_other_message_from_being_put_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CALL_SECONDS", 3600.0)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.1)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, asked: (
        action == "ChangeMessageVisibilityBatch"
        and any(entry["ReceiptHandle"] == "bad" for entry in asked["Entries"])
    )
    server.messages = ["bad"]
    async with opened(server.source(pollers=1)) as hands:
        [bad] = await hands.take(1)
        await until(lambda: changes(server)["bad"])
        server.messages = ["good"]
        [good] = await hands.take(1)
        await until(lambda: changes(server)["good"] >= 2, timeout=60)
        assert good.outcome is None
        assert bad.outcome is Outcome.RELEASED


async def test_deletes_that_hang_keep_no_message_from_being_put_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CALLS", 1)
    monkeypatch.setattr(answers, "CALL_SECONDS", 3600.0)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.1)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, _: action == "DeleteMessageBatch"
    server.messages = ["settled"]
    async with opened(server.source()) as hands:
        settle(await hands.take(1))
        await until(lambda: server.calls["DeleteMessageBatch"])
        server.messages = ["a"]
        [waiting] = await hands.take(1)
        await until(lambda: changes(server)["a"] >= 2, timeout=60)
        assert waiting.outcome is None


async def test_what_came_again_is_not_given_back_by_its_old_receipt() -> None:
    asked: list[tuple[str, int | None]] = []

    class Queue:
        async def answer(self, entries: Any, *, seconds: float) -> dict[int, Any]:
            asked.extend(entries)
            return {}

    def held(name: str) -> Held:
        event = Event(id=name, source="s", type="t", data=b"")
        return Held(event, f"old receipt of {name}", None, lambda _held, _outcome: None)

    owed = Answers(
        Queue(),  # type: ignore[arg-type] # as much of one as is asked
        Metrics().source("bucket"),
        None,
        is_held=lambda name: name == "again",
        answered=lambda _held: None,
    )
    owed.owe(held("again"), delete=False)
    owed.owe(held("gone"), delete=False)
    owed.owe(held("done"), delete=True)
    await owed.finish()
    assert sorted(asked, key=str) == [("old receipt of done", None), ("old receipt of gone", 0)]


async def test_an_answer_that_tells_nothing_of_a_message_deletes_nothing(server: Server) -> None:
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
    value: float = hands.source._metrics.stale_receipts._value.get()
    return value


ODD_MESSAGES: dict[str, dict[str, Any]] = {
    "no id": {"ReceiptHandle": "r", "Body": "b"},
    "no receipt": {"MessageId": "m", "Body": "b"},
    "an id that is no text": {"MessageId": 7, "ReceiptHandle": "r", "Body": "b"},
    "nothing": {},
}


@pytest.mark.parametrize("odd", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
async def test_a_message_that_can_not_be_answered_is_left_to_the_queue_and_stops_none_beside_it(
    server: Server, odd: dict[str, Any]
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
    server: Server, monkeypatch: pytest.MonkeyPatch
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
            *[False] * 3,
            *[True] * 3,
            False,
        ]
        assert taken["m6"].event.data == b"good"

        def broken(_event: Any) -> Any:
            raise LookupError("a defect")

        monkeypatch.setattr(reader, "open_notification", broken)
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
    server: Server, most: Any, counts: dict[int, bool]
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


PAGES = {
    "page": lambda _: web.Response(text="<html>Please log in", content_type="text/html"),
    "list": lambda _: web.json_response([]),
    "nothing": lambda _: web.Response(text="null", content_type="application/x-amz-json-1.0"),
    "deep": lambda _: web.Response(text="[" * 100_000, content_type="application/x-amz-json-1.0"),
}


async def test_a_queue_without_attributes_is_none(server: Server) -> None:
    server.attributes = {}
    with pytest.raises(SourceLost, match="no answer of SQS's"):
        async with opened(server.source()):
            pass


@pytest.mark.parametrize("text", ["soon", "-1", "1e3", "9" * 30, ""])
async def test_attributes_that_are_no_numbers_are_not_known(server: Server, text: str) -> None:
    metrics = Metrics()
    server.attributes = dict.fromkeys(("VisibilityTimeout", "ApproximateNumberOfMessages"), text)
    server.messages = ["a"]
    async with opened(server.source(metrics=metrics)) as hands:
        await hands.take(1)
        assert metrics.registry.get_sample_value("bridge_source_lag", {"source": "bucket"}) is None


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("action", ["GetQueueUrl", "GetQueueAttributes", "ReceiveMessage"])
async def test_what_is_no_answer_of_sqs_is_a_lost_source(
    server: Server, monkeypatch: pytest.MonkeyPatch, action: str, page: Answer
) -> None:
    monkeypatch.setattr(reader, "LOST_SECONDS", 0.2)
    server.answers[action] = page
    with pytest.raises(SourceLost, match=r"no answer of SQS's|in place of SQS's answer"):
        async with opened(server.source()) as hands:
            await hands.take(1)
    assert server.calls[action] < 30


async def test_a_web_page_deletes_nothing(server: Server) -> None:
    server.messages = ["a"]
    server.answers["DeleteMessageBatch"] = PAGES["page"]
    async with opened(server.source()) as hands:
        [message] = await hands.take(1)
        message.settle(Outcome.ACCEPTED)
        await until(lambda: server.calls["DeleteMessageBatch"] > 1)
        del server.answers["DeleteMessageBatch"]
        await until(lambda: server.deleted == ["a"])


async def test_a_server_that_holds_back_no_empty_answer_is_asked_with_pauses(server: Server) -> None:
    server.answers["ReceiveMessage"] = lambda _: web.json_response({})
    async with opened(server.source(pollers=1)) as hands:
        await hands.takes_nothing(1)
    assert server.calls["ReceiveMessage"] < 15


async def test_no_reason_tells_a_credential(server: Server) -> None:
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


async def test_a_refused_permission_is_named(server: Server) -> None:
    server.answers["GetQueueAttributes"] = lambda _: refusal("AccessDenied", "not authorized", 403)
    with pytest.raises(SourceLost, match=r"GetQueueAttributes refused: AccessDenied \(not authorized\)"):
        async with opened(server.source()):
            pass


async def test_deletes_go_by_ten_and_only_what_failed_is_tried_again(server: Server) -> None:
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
    server: Server, monkeypatch: pytest.MonkeyPatch
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


async def test_a_large_notification_goes_in_pieces_that_fit_the_slots(server: Server) -> None:
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
