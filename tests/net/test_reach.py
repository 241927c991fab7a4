"""What `check` says of a name and of the way to it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

from bridge.core.ports import Findings
from bridge.net.loop import Loop
from bridge.net.reach import reach, reach_url
from tests.check.findings import said
from tests.servers.black_hole import black_hole
from tests.sources.rucio import behind


def test_a_name_that_nobody_has_is_told() -> None:
    findings = Findings("x")
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(reach(findings, "nobody.invalid", 9092, None, address_key="endpoint", ca_key="ca_file"))
    said(findings.found, "problem", "nobody.invalid can't be resolved")


async def test_the_way_through_a_proxy_is_told_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        port = proxy.getsockname()[1]
        monkeypatch.setenv("https_proxy", f"me:word@127.0.0.1:{port}")
        findings = Findings("x")
        url = "https://somewhere.test"
        assert await reach_url(findings, url, None, address_key="endpoint", ca_key="ca_file")
        through = f"somewhere.test is reached through the proxy http://127.0.0.1:{port}"
        note = said(findings.found, "note", through)
        assert "word" not in note.message
    assert not await reach_url(findings, url, None, address_key="endpoint", ca_key="ca_file")
    said(findings.found, "problem", "connection refused", remedy="https_proxy")


def test_an_address_that_never_answers_is_no_problem_beside_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind(monkeypatch, "half.test", "127.0.0.2", "127.0.0.1")
    findings = Findings("x")
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        black_hole("127.0.0.2", server.getsockname()[1]) as port,
        asyncio.Runner(loop_factory=Loop) as runner,
    ):
        assert runner.run(reach(findings, "half.test", port, None, address_key="a", ca_key="ca_file"))
    assert findings.found == []
