"""The loop that a check asks in."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from bridge.core.ports import Findings
from bridge.reach import Loop, reach
from tests.check.findings import said


async def ask(findings: Findings, host: str) -> None:
    async with asyncio.timeout(0.2):
        await reach(findings, host, 9092, None, address_key="endpoint", ca_key="ca_file")


def test_a_loop_is_left_though_a_name_is_still_being_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30))
    began = time.monotonic()
    with asyncio.Runner(loop_factory=Loop) as runner, pytest.raises(TimeoutError):
        runner.run(ask(Findings("x"), "slow.invalid"))
    assert time.monotonic() - began < 5
    answered.set()


def test_names_are_looked_up_as_ever() -> None:
    findings = Findings("x")
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(ask(findings, "nobody.invalid"))
        said(findings.found, "problem", "nobody.invalid can't be resolved")
        assert runner.run(asyncio.wait_for(_localhost(), 5))


async def _localhost() -> bool:
    found = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    return bool(found)
