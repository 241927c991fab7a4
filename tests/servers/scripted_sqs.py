"""One queue in the JSON protocol of SQS that says and leaves unsaid what a test wants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.source import SqsSource
from bridge.telemetry.metrics import Metrics

Answer = Callable[[dict[str, Any]], web.Response]


class ScriptedSqs:
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
        return SqsSource(SqsConfig.model_validate(values), "bucket", (metrics or Metrics()).source("bucket"))

    def changes(self, visibility: int | None = None) -> Counter[str]:
        """Count how often the visibility of each message was changed, by its receipt."""
        return Counter(
            entry["ReceiptHandle"]
            for action, asked in self.asked
            if action == "ChangeMessageVisibilityBatch"
            for entry in asked["Entries"]
            if visibility is None or entry["VisibilityTimeout"] == visibility
        )


def refusal(code: str, message: str = "no", status: int = 400) -> web.Response:
    return web.json_response({"__type": f"com.amazonaws.sqs#{code}", "message": message}, status=status)


@asynccontextmanager
async def served() -> AsyncIterator[ScriptedSqs]:
    server = ScriptedSqs()
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
