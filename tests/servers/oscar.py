"""Calls of the sandbox OSCAR, as its own tests make them."""

import base64
import time
from typing import Any

import aiohttp

from bridge.sandbox.oscar import Service

ADMIN = {"Authorization": "Basic " + base64.b64encode(b"oscar:sandbox").decode()}


class Clock:
    """The time of day, as the cluster sees it: it stands still but for `pass_`."""

    def __init__(self) -> None:
        self.now = time.time()

    def pass_(self, seconds: float) -> None:
        """Let seconds go by."""
        self.now += seconds


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def invoke(
    http: aiohttp.ClientSession, service: Service, *names: str, body: bytes = b"{}", token: str | None = None
) -> None:
    """Make jobs of those names, with the service's token or a user's."""
    for name in names:
        headers = bearer(token or service.token) | {"X-Delegated-Job-ID": name}
        async with http.post(f"/job/{service.name}", data=body, headers=headers) as answer:
            assert answer.status == 201, await answer.text()


async def call(
    http: aiohttp.ClientSession, method: str, path: str, headers: dict[str, str] = ADMIN, json: Any = None
) -> tuple[int, Any]:
    """The status of an answer, and its JSON or text."""
    async with http.request(method, path, headers=headers, json=json) as answer:
        if answer.content_type == "application/json":
            return answer.status, await answer.json()
        return answer.status, await answer.text()


async def listed(http: aiohttp.ClientSession, service: str) -> dict[str, Any]:
    """The jobs on the first page of a listing."""
    status, answer = await call(http, "GET", f"/system/logs/{service}")
    assert status == 200, answer
    jobs: dict[str, Any] = answer["jobs"]
    return jobs
