"""A queue that is opened again and again, as one is that refuses the bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from botocore.loaders import JSONFileLoader

from bridge.core.errors import SourceLost
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import connect


class Refusing:
    """A server that refuses every call, and notes who asked."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
        return web.json_response({"__type": "AccessDenied", "message": "no"}, status=403)


@pytest.fixture
async def server() -> AsyncIterator[Refusing]:
    server = Refusing()
    app = web.Application()
    app.router.add_post("/", server.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def refused(server: Refusing, **keys: Any) -> None:
    values = {"type": "sqs", "queue": "uploads", "region": "eu-west-1", "endpoint_url": server.url, **keys}
    with pytest.raises(SourceLost, match="AccessDenied"):
        async with connect(SqsConfig.model_validate(values)):
            pass


async def test_a_queue_that_is_opened_again_reads_no_description_of_a_service_again(
    server: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = {"access_key_id": "AKIA", "secret_access_key": "hunter2"}
    read: list[str] = []
    load = JSONFileLoader.load_file

    def load_file(loader: JSONFileLoader, path: str) -> Any:
        found = load(loader, path)
        if found is not None:
            read.append(path)
        return found

    monkeypatch.setattr(JSONFileLoader, "load_file", load_file)
    monkeypatch.setenv("AWS_DATA_PATH", "/no/such")  # a search path that no test before this one had
    await refused(server, **static)
    assert any("sqs" in path for path in read)
    read.clear()
    await refused(server, **static)
    assert (read, len(server.keys)) == ([], 2)


async def test_credentials_renewed_on_disk_are_those_of_the_next_opening(
    server: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    for key in ("AKIAFIRST", "AKIASECOND"):
        credentials.write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = hunter2\n")
        await refused(server, profile="lab")
    assert server.keys == ["AKIAFIRST", "AKIASECOND"]
