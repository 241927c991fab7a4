"""What names, operators, proxies and half-dead sites may do to the dCache source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from tests.sources.dcache import Bridge


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


NAMES = [
    *(
        "a b",
        " lead",
        "trail ",
        "a%20b",
        "100%",
        "%2e%2e",
        "a%2Fb",
        "a#b",
        "a?b=c",
        "a+b",
        "a&b",
        "a;b",
        "a:b",
    ),
    *("caf\u00e9", "cafe\u0301", "\U0001f331", "a\u00a0b", "\ufffd\ufffd", "a\u0085b", "a\u2028b"),
    *("new\nline", "a\rb", "a\tb", "a\x0bb", "a\x1cb", "\x01", "\x7f"),
    *("-rf", "..a", "a..b", ".hidden", "~", "*", "[x]", "{x}", "a\\b", '"q"', "'", "data: x", "x" * 255),
]


async def test_a_file_or_directory_of_any_name_enters_by_its_event_and_by_a_listing(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        told = {f"/data/in/{name}" for name in NAMES}
        listed = {f"/data/in/d{name}/{name}" for name in NAMES}
        for path in sorted(told | listed):
            await site.upload(path, b"x")
        events = await running.accept(len(told | listed))
        assert {event.subject for event in events} == told | listed
        assert not running.source.problems()
        await running.nothing_more()
