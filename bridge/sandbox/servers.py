"""Servers of others that run beside the sandbox's own, each a process on a loopback port."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(
    command: Sequence[str], port: int, environment: Mapping[str, str], seconds: float
) -> AsyncIterator[None]:
    """Run a server while inside, in a directory of its own, which goes with it.

    Raise RuntimeError when it ends before it listens on `port`, TimeoutError when it takes longer than
    `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-") as home:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**environment, "HOME": home},
            cwd=home,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,  # Ctrl-C is for the bridge: a broker outlives its last commit
        )
        try:
            async with asyncio.timeout(seconds):
                await _listens(port, process)
            yield
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _listens(port: int, process: Process) -> None:
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError(f"a server of the sandbox ended with status {process.returncode}")
