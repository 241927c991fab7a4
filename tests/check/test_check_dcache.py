"""Mistakes seeded at a dCache source, on the sandbox site."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bridge.core.ports import Finding, Patience
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.dcache.events import Events
from bridge.sandbox.servers import free_port
from bridge.sources.dcache import KIND
from bridge.sources.dcache.config import DcacheConfig
from tests.check.findings import is_well, said

PATIENCE = Patience(attempt=30, unsettled=630)
PASSWORD = "correct-horse"


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        site.settings.users = {"bridge": PASSWORD}
        await site.mkdir("/data/in")
        yield site


async def check(endpoint: str, **more: Any) -> Sequence[Finding]:
    config = DcacheConfig.model_validate(
        {
            "type": "dcache",
            "endpoint": endpoint,
            "auth": {"type": "basic", "username": "bridge", "password": PASSWORD},
            "paths": ["/data/in"],
            **more,
        }
    )
    found = await KIND.check(config, "arrivals", PATIENCE)
    assert PASSWORD not in str(found)
    return found


async def test_a_site_as_it_should_be_is_well_and_nothing_is_left_there(site: SandboxDcache) -> None:
    found = await check(site.base)
    assert is_well(found)
    said(found, "ok", "the user is known, with 0 of 128 channels")
    said(found, "ok", "/data/in can be listed and watched")
    assert site.watched == []
    assert not site._events.channels


async def test_a_wrong_password_is_told_after_one_request_with_it(site: SandboxDcache) -> None:
    site.settings.users = {"bridge": "another"}
    found = await check(site.base)
    said(found, "problem", "401", remedy="sources.arrivals.auth")
    assert site.requests.total() <= 2


async def test_paths_that_are_not_there_or_closed_are_told(site: SandboxDcache) -> None:
    await site.mkdir("/data/closed")
    await site.upload("/data/file", b"x")
    site.mark_unreadable("/data/closed")
    found = await check(site.base, paths=["/data/in", "/data/none", "/data/closed", "/data/file"])
    said(found, "problem", "/data/none is not there", remedy="sources.arrivals.paths")
    said(found, "problem", "/data/closed may not be listed")
    said(found, "problem", "/data/file is not there, or no directory")
    said(found, "ok", "/data/in can be listed and watched")


async def test_a_user_without_a_channel_left_is_told(site: SandboxDcache) -> None:
    login = aiohttp.encode_basic_auth("bridge", PASSWORD)
    async with aiohttp.ClientSession(headers={"Authorization": login}) as http:
        await http.post(f"{site.base}/events/channels", json={})
    site.settings.channels_per_user = 1
    found = await check(site.base)
    said(found, "warning", "no channel left")
    said(found, "ok", "with 1 of 1 channels")


async def test_channels_that_die_young_are_told(site: SandboxDcache) -> None:
    site.settings.maximum_timeout_seconds = 600
    said(await check(site.base), "warning", "forgets a channel after 600 s")


async def test_something_else_than_dcache_is_told(site: SandboxDcache) -> None:
    found = await check(site.url + "/data")
    said(found, "problem", remedy="REST API")


async def test_nobody_there_is_told() -> None:
    found = await check(f"http://127.0.0.1:{free_port()}/api/v1")
    said(found, "problem", "connection refused", remedy="sources.arrivals.endpoint")


async def test_a_clock_that_is_off_is_told(site: SandboxDcache, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = web.StreamResponse.prepare

    async def late(self: web.StreamResponse, request: web.BaseRequest) -> Any:
        self.headers["Date"] = "Tue, 15 Nov 1994 08:12:31 GMT"
        return await prepare(self, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", late)
    said(await check(site.base), "warning", "the clocks of dCache and of this machine")


@pytest.mark.parametrize(
    "limits", [{"channels": {"maximumPerUser": "unlimited"}}, {"channels": [7]}, [], "[" * 10**5]
)
async def test_limits_of_any_type_are_told_or_passed_by(
    site: SandboxDcache, monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    async def odd(_events: Events, _request: web.Request) -> web.Response:
        if isinstance(limits, str):
            return web.Response(text=limits, content_type="application/json")
        return web.json_response(limits)

    monkeypatch.setattr(Events, "_limits", odd)
    async with SandboxDcache(site.settings) as another:
        await another.mkdir("/data/in")
        found = await check(another.base)
    said(found, "problem", "not JSON" if isinstance(limits, str) else "tells of no channels")
