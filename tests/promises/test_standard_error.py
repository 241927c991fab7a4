"""Standard error that nobody reads, or that is closed: the bridge works, answers and stops all the same."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bridge.sandbox.servers import free_port
from tests.support.daemon import Daemon

FEW_LINES = "from bridge.telemetry import writer; writer.MOST_LINES = 1"
CRASHES = """
from bridge import app
async def run(*_, **__):
    import structlog
    structlog.get_logger("bridge.app").error("the last line of the log")
    raise RuntimeError("a defect, password=hunter2")
app.run = run
"""


def configuration() -> dict[str, Any]:
    """Neither the broker nor the cluster is there: this is about the process alone."""
    nobody = f"127.0.0.1:{free_port()}"
    return {
        "clusters": {
            "main": {
                "endpoint": f"http://{nobody}",
                "auth": {"type": "basic", "username": "u", "password": "p"},
            }
        },
        "services": {"plants": {"cluster": "main"}},
        "sources": {
            "uploads": {"type": "kafka", "bootstrap_servers": nobody, "topics": ["t"], "group_id": "g"}
        },
        "routes": [{"from": "uploads", "to": "plants"}],
    }


@asynccontextmanager
async def running(daemon: Daemon, *, stderr: int | None = None, shell: str = "") -> AsyncIterator[Any]:
    command = daemon.command_line
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    process = subprocess.Popen(command, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        daemon.close()


def opened_as(pid: int, descriptor: int) -> Path:
    return Path(f"/proc/{pid}/fd/{descriptor}").readlink()


@pytest.fixture
def full_pipe() -> Any:
    """A pipe that takes no byte more, and that nobody reads."""
    reading, writing = os.pipe()
    os.write(writing, b"." * fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096))
    yield writing
    os.close(reading)
    os.close(writing)


async def test_standard_error_that_nobody_reads_holds_up_neither_the_loop_nor_the_stop(
    tmp_path: Path, full_pipe: int
) -> None:
    daemon = Daemon(tmp_path, configuration(), FEW_LINES)
    async with running(daemon, stderr=full_pipe) as process:
        await daemon.is_up()
        async with asyncio.timeout(30):
            while not await daemon.metric("bridge_log_lines_dropped_total"):
                await asyncio.sleep(0.05)
        told = await daemon.ready()
        assert told is not None
        assert "source uploads" in {problem["part"] for problem in told["problems"]}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_crash_ends_though_nobody_reads_standard_error(tmp_path: Path, full_pipe: int) -> None:
    async with running(Daemon(tmp_path, configuration(), CRASHES), stderr=full_pipe) as process:
        assert await asyncio.to_thread(process.wait, 30) == 1


async def test_the_last_lines_of_a_crash_and_its_traceback_come_out(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        async with running(Daemon(tmp_path, configuration(), CRASHES), stderr=file.fileno()) as process:
            assert await asyncio.to_thread(process.wait, 30) == 1
    said = (tmp_path / "stderr").read_text()
    assert "the last line of the log" in said
    assert "Traceback (most recent call last)" in said
    assert said.endswith("RuntimeError: a defect, password=[redacted]\n")


async def test_the_last_line_of_a_stop_comes_out(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, configuration())
    daemon.start()
    try:
        await daemon.is_up()
        assert await daemon.stop() == 0
        assert daemon.lines()[-1]["event"] == "bridge stopped"
    finally:
        daemon.close()


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
async def test_started_without_standard_error_nothing_is_written_to_what_gets_its_number(
    tmp_path: Path, closed: str
) -> None:
    daemon = Daemon(tmp_path, configuration())
    async with running(daemon, shell=closed) as process:
        await daemon.is_up()
        for descriptor in range(3) if "0<" in closed else (2,):
            assert opened_as(process.pid, descriptor) == Path(os.devnull)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    with closing(sqlite3.connect(daemon.store)) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_reader_of_standard_error_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    daemon = Daemon(tmp_path, configuration())
    async with running(daemon, stderr=writing) as process:
        os.close(writing)
        await daemon.is_up()
        os.close(reading)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
