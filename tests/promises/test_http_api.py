"""The HTTP API of a whole bridge: all to who has the token, and nothing of an event to anybody else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bridge.testing import until
from tests.destinations.fake_oscar import PASSWORD, USER, FakeOscar
from tests.support.world import World

TOKEN = "of-the-operator"
MARKS = {name: f"mark-of-the-{name}" for name in ("key", "body", "object", "answer", "window")}
"""What stands in Kafka keys, bodies, names of objects, OSCAR's answers and the key of a window."""
OPEN = ("/livez", "/readyz", "/metrics")
CLOSED = (
    "/",
    "/page/page.js",
    "/page/",
    "/api/status",
    "/api/history",
    "/api/events?query=mark",
    "/api/dead-letters",
    "/api/dead-letters/1",
    "/api/dead-letters?text=mark",
    "/api/parked",
    "/api/commands",
    "/nothing",
)


async def answer(request: web.Request, _body: bytes) -> web.StreamResponse:
    """Repeat what the event holds, as proxies and applications do."""
    status = 422 if "rejects" in request.path else 500
    return web.Response(status=status, text=f"{MARKS['answer']}: can't do this")


def storage_event(key: str) -> bytes:
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "s3": {"bucket": {"name": "in"}, "object": {"key": key, "size": 1}},
    }
    return json.dumps({"Records": [record]}).encode()


class Asked:
    def __init__(self, port: int, token: str | None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def __call__(self, path: str, method: str = "GET", **more: Any) -> tuple[int, str]:
        """Ask; give the status, and all that came: headers and body."""
        async with (
            aiohttp.ClientSession(headers=self.headers) as session,
            session.request(method, self.url + path, **more) as answer,
        ):
            return answer.status, f"{dict(answer.headers)}\n{await answer.text()}"

    async def read(self, path: str) -> Any:
        status, text = await self(path)
        assert status == 200, text
        return json.loads(text.partition("\n")[2])


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("BRIDGE__HTTP__TOKEN_FILE", str(tmp_path / "token"))


async def test_nobody_without_the_token_sees_anything_of_an_event(world: World) -> None:
    oscar = FakeOscar(services={"fails", "rejects", "gathers"}, answer=answer)
    async with oscar.serve():
        daemon = world.daemon(
            world.configuration(
                clusters={
                    "main": {
                        "endpoint": oscar.url,
                        "auth": {"type": "basic", "username": USER, "password": PASSWORD},
                    }
                },
                services={
                    "fails": {"park_after": "1s", "retry": {"max_backoff": "1s"}},
                    "rejects": {},
                    "gathers": {},
                },
                routes=[
                    {"from": "uploads", "to": "fails"},
                    {"from": "uploads", "to": "rejects"},
                    {
                        "from": "uploads",
                        "to": "gathers",
                        "when": "has(data.window)",
                        "merge": {"window": "1h", "key": "data.window"},
                    },
                ],
            )
        )
        bodies = [json.dumps({"window": MARKS["window"], "text": MARKS["body"]}).encode()] * 5
        bodies.append(storage_event(f"in/{MARKS['object']}.nc"))
        await world.bed.produce(bodies, keys=[MARKS["key"].encode()] * len(bodies))
        daemon.start()
        await daemon.is_up()
        operator = Asked(daemon.port, TOKEN)

        async def shown() -> dict[str, Any]:
            return {one["key"]: one for one in (await operator.read("/api/status"))["services"]}

        async with asyncio.timeout(60):
            while True:
                now = await shown()
                kept = now["fails"]["parked"], now["rejects"]["dead_letters"], now["gathers"]["windows"]
                if kept == (6, 6, 1) and not now["fails"]["open"]:
                    break
                await asyncio.sleep(0.1)
        assert "http_500" in now["fails"]["why"]
        letters = (await operator.read("/api/dead-letters"))["letters"]
        seen = json.dumps(
            [
                letters,
                [await operator.read(f"/api/dead-letters/{letter['number']}") for letter in letters],
                await operator.read("/api/parked"),
            ]
        )
        assert [name for name, mark in MARKS.items() if mark not in seen] == [], "the operator sees it"
        for path in (*OPEN, *CLOSED):
            for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
                for token in (None, "wrong"):
                    _, text = await Asked(daemon.port, token)(path, method)
                    assert "mark-of" not in text, (path, method, token)
                _, text = await operator(path, method, headers={"Host": "evil.example.org"})
                assert "mark-of" not in text, (path, method)


async def test_an_operator_brings_a_dead_letter_back_and_changes_a_limit(
    world: World, tmp_path: Path
) -> None:
    daemon = world.daemon()
    world.oscar.settings.max_body_bytes = 60
    await world.produce_numbers(3, filling="x" * 100)
    daemon.start()
    await until(lambda: len(daemon.said("dead letter", cause="http_413")) == 3, what="the dead letters")
    world.oscar.settings.max_body_bytes = None
    operator = Asked(daemon.port, TOKEN)
    page = await operator.read("/api/dead-letters?service=plants&cause=http_413&limit=2")
    assert (page["total"], len(page["letters"])) == (3, 2)
    (last,) = (await operator.read(f"/api/dead-letters?before={page['next']}"))["letters"]
    assert (await operator.read(f"/api/dead-letters?text={world.ids[0]}"))["total"] == 1
    assert (await operator(f"/api/dead-letters/{10**18}"))[0] == 404
    (event,) = (await operator.read(f"/api/events?query={world.ids[0]}"))["events"]
    assert [(fate["service"], fate["fate"]) for fate in event["fates"]] == [("plants", "dead letter")]
    one = await operator.read(f"/api/dead-letters/{last['number']}")
    assert json.loads(one["data"])["filling"] == "x" * 100

    async def order(**command: Any) -> Any:
        status, text = await operator("/api/commands", "POST", json=command)
        assert status == 200, text
        return json.loads(text.partition("\n")[2])

    assert await order(do="replay", numbers=[last["number"]]) == {"changed": 1, "refused": {}}
    assert await order(do="replay", service="plants") == {"changed": 2, "refused": {}}
    await world.all_jobs()
    world.assert_one_job_an_event()
    rows = (await order(do="limits", kind="service", key="plants", limits={"rate": "5/s"}))["rows"]
    assert [row["in_force"] for row in rows if row["name"] == "rate"] == ["5/s"]
    await order(do="pause", kind="source", key="uploads")
    status = await operator.read("/api/status")
    assert [one["paused"] for one in status["sources"]] == [True]
    assert {"kind": "service", "name": "rate", "in_force": "5/s"}.items() <= next(
        row for row in status["limits"] if row["since"] is not None and row["name"] == "rate"
    ).items()
    (plants,) = status["services"]
    assert (plants["dead_letters"], plants["accepted"], plants["failed"]) == (0, 3, 3)
    for wrong in (
        {},
        {"do": "nothing"},
        {"do": ["status"]},
        {"do": "replay", "numbres": [1]},
        {"do": "limits", "kind": "service", "key": "x"},
    ):
        assert (await operator("/api/commands", "POST", json=wrong))[0] == 400
