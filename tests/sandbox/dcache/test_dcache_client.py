"""dCache's own sample client (github.com/paulmillar/dcache-sse), unchanged, against the sandbox.

Without `-r`: with it that client fails by itself as soon as there is a directory below the one it watches.
"""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.testing import until

_CLIENT = os.environ.get("DCACHE_SSE_CLIENT", "")
_PYTHON = os.environ.get("DCACHE_SSE_PYTHON", "python3")

pytestmark = pytest.mark.skipif(
    not _CLIENT,
    reason="DCACHE_SSE_CLIENT names no simple-client.py (and DCACHE_SSE_PYTHON an interpreter with requests, "
    "sseclient and liboidcagent)",
)


@asynccontextmanager
async def client(site: SandboxDcache, *arguments: str) -> AsyncIterator[tuple[Process, list[str]]]:
    """The client watching /data, and its lines as they come."""
    login = ("--user", "bridge", "--password", "bridge")
    process = await asyncio.create_subprocess_exec(
        *(_PYTHON, "-u", _CLIENT, "--endpoint", site.base, *login, *arguments, "/data"),
        stdout=PIPE,
        stderr=STDOUT,
    )
    lines: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        async for text in process.stdout:
            lines.append(text.decode().rstrip())  # noqa: PERF401 - the test looks while they come

    reading = asyncio.create_task(read())
    try:
        await until(lambda: site.connected or process.returncode is not None)
        yield process, lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await process.wait()
            await reading


async def test_the_sample_client_is_told_of_uploads_renames_and_removals() -> None:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        async with client(site) as (_, lines):
            await site.upload("/data/a b", b"1")
            await site.mkdir("/data/new")
            await site.rename("/data/a b", "/data/c")
            await site.remove("/data/c")
            await until(lambda: "DELETED FILE /data/c" in lines)
        assert "NEW FILE /data/a b" in lines
        assert "NEW DIRECTORY /data/new/" in lines
        assert "FILE MOVED FROM /data/a b TO /data/c" in lines
        assert site.requests["DELETE events"] == 1  # it deletes its channel when it ends


async def test_the_sample_client_resumes_where_it_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with SandboxDcache() as site:
        await site.mkdir("/data")
        async with client(site, "--state", str(state)) as (_, lines):
            await site.upload("/data/first")
            await until(lambda: "NEW FILE /data/first" in lines)
        assert state.exists()
        await site.upload("/data/missed")
        async with client(site, "--state", str(state)) as (_, lines):
            await until(lambda: "NEW FILE /data/missed" in lines)
        assert "NEW FILE /data/first" not in lines
        site.trouble.lose_events()
        async with client(site, "--state", str(state)) as (_, lines):
            await until(lambda: "EVENT LOSS" in lines)
