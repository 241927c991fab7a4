"""A server that does not answer some of the calls: what it hangs on holds up nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.core.delivery import Outcome
from bridge.core.event import Event
from bridge.core.steady import Steady
from bridge.sources.sqs import answers, http, reader
from bridge.sources.sqs.answers import Answers
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import connect
from bridge.sources.sqs.held import Held
from bridge.telemetry.metrics import Metrics
from bridge.testing import opened, settle, until
from tests.servers.scripted_sqs import ScriptedSqs, refusal, served


@pytest.fixture
async def server() -> AsyncIterator[ScriptedSqs]:
    async with served() as server:
        yield server


def falls_due(monkeypatch: pytest.MonkeyPatch, *, gives_way: float) -> None:
    """Have each message put off every few turns of the loop, and give way after so many seconds."""

    def is_kept(held: Held, now: float, _visibility: float) -> None:
        held.due, held.gives_way = now + 0.05, now + gives_way

    monkeypatch.setattr(Held, "is_kept", is_kept)
    monkeypatch.setattr(answers, "CALL_SECONDS", 3600.0)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.1)


async def test_a_message_whose_time_is_up_is_let_go_though_the_call_to_put_it_off_hangs(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    falls_due(monkeypatch, gives_way=0.3)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, _: action == "ChangeMessageVisibilityBatch"
    server.messages = [f"m{n}" for n in range(25)]
    async with opened(server.source()) as hands:
        taken = await hands.take(25)
        await until(lambda: server.calls["ChangeMessageVisibilityBatch"])
        await until(lambda: all(delivery.outcome is Outcome.RELEASED for delivery in taken), seconds=60)
        server.messages = ["m0"]  # its redelivery: alone in the bridge's hands
        [again] = await hands.take(1)
        assert again.event.id == "m0"


async def test_a_call_that_hangs_keeps_no_other_message_from_being_put_off(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    falls_due(monkeypatch, gives_way=600)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, asked: (
        action == "ChangeMessageVisibilityBatch"
        and any(entry["ReceiptHandle"] == "bad" for entry in asked["Entries"])
    )
    server.messages = ["bad"]
    async with opened(server.source(pollers=1)) as hands:
        [bad] = await hands.take(1)
        await until(lambda: server.changes()["bad"])
        server.messages = ["good"]
        [good] = await hands.take(1)
        await until(lambda: server.changes()["good"] >= 2, seconds=60)
        assert [bad.outcome, good.outcome] == [None, None]


async def test_what_the_queue_fails_to_put_off_is_tried_again_after_a_pause_and_told_if_it_lasts(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    falls_due(monkeypatch, gives_way=600)
    server.attributes["VisibilityTimeout"] = "2"
    monkeypatch.setattr(answers, "TELL_SECONDS", 0.2)
    server.answers["ChangeMessageVisibilityBatch"] = lambda _: refusal("InternalError", status=500)
    server.messages = ["a"]
    async with opened(server.source()) as hands:
        await hands.take(1)
        began = time.monotonic()
        await until(lambda: server.changes()["a"] >= 6)
        (told,) = hands.source.problems()
        assert "messages can't be kept from others: " in told
        assert "status 500" in told
        del server.answers["ChangeMessageVisibilityBatch"]
        await until(lambda: "over for" in hands.source.problems()[0])
        assert time.monotonic() - began > 5 * 0.1


async def test_deletes_that_hang_keep_no_message_from_being_put_off(
    server: ScriptedSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CALLS", 1)
    falls_due(monkeypatch, gives_way=600)
    server.attributes["VisibilityTimeout"] = "2"
    server.hangs = lambda action, _: action == "DeleteMessageBatch"
    server.messages = ["settled"]
    async with opened(server.source()) as hands:
        settle(await hands.take(1))
        await until(lambda: server.calls["DeleteMessageBatch"])
        server.messages = ["a"]
        [waiting] = await hands.take(1)
        await until(lambda: server.changes()["a"] >= 2, seconds=60)
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
        trouble=Steady(),
        is_held=lambda name: name == "again",
        answered=lambda _held: None,
    )
    owed.owe(held("again"), delete=False)
    owed.owe(held("gone"), delete=False)
    owed.owe(held("done"), delete=True)
    await owed.finish()
    assert sorted(asked, key=str) == [("old receipt of done", None), ("old receipt of gone", 0)]


async def test_a_call_given_up_amid_its_answer_lets_go_of_its_connection_though_the_error_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    amid, let_go = asyncio.Event(), asyncio.Event()

    async def answer_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        while await reader.read(1024):
            pass
        let_go.set()
        writer.close()

    async def noticed(*arguments: Any) -> bytes:
        amid.set()
        return await body_of(*arguments)

    body_of = http.body_of
    monkeypatch.setattr(http, "body_of", noticed)
    async with await asyncio.start_server(answer_half, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config = SqsConfig.model_validate(
            {
                "type": "sqs",
                "queue": f"http://127.0.0.1:{port}/1/uploads",
                "region": "eu-west-1",
                "access_key_id": "AKIA",
                "secret_access_key": "x",
            }
        )
        async with connect(config) as queue:
            call = asyncio.create_task(queue.attributes())
            await amid.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:
                await call
            await let_go.wait()
    del kept
