"""One `oscar-bridge run` as a process of its own, and what a test sees of it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bridge.testing.waiting import until


class Process(Protocol):
    """A process that was started (`subprocess.Popen`)."""

    @property
    def pid(self) -> int:
        """Name it as the system does."""

    def poll(self) -> int | None:
        """Return its status if it has ended."""

    def kill(self) -> None:
        """Send it SIGKILL."""

    def send_signal(self, number: signal.Signals, /) -> None:
        """Send it a signal."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its status. Raises subprocess.TimeoutExpired."""


class Daemon:
    """One daemon with a directory of its own; its log lines are kept in a file.

    `prelude` is Python that runs before it, to make hours of a server's limits seconds. What is told until it
    has held for half a minute is told for a second.
    """

    def __init__(self, directory: Path, configuration: dict[str, Any], prelude: str = "") -> None:
        self.directory = directory
        # Bound and never listening: nobody else is given the port while the daemon is down between kills.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        configuration = {
            "state_dir": str(directory / "state"),
            "http": {"port": self.port},
            **configuration,
        }
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "bridge.yaml"
        self.file.write_text(yaml.safe_dump(configuration, sort_keys=False))
        self.log = directory / "log"
        self.process: Process | None = None
        self.prelude = f"from bridge.core import steady; steady.HELD_SECONDS = 1.0\n{prelude}"
        self._lines: list[dict[str, Any]] = []
        self._seen = 0
        """Bytes of the log that those lines were read from."""
        self._begun = 0
        """How often it had begun before the last start."""

    @property
    def pid(self) -> int:
        """Name its process."""
        assert self.process is not None
        return self.process.pid

    @property
    def command_line(self) -> list[str]:
        """What makes it a process that shares nothing with the test's."""
        code = f"import sys\n{self.prelude}\nfrom bridge.cli import main\nsys.exit(main())"
        return [sys.executable, "-c", code, "run", "-c", str(self.file)]

    def start(self) -> None:
        """Start it; it is not up yet."""
        self._begun = len(self.said("bridge started"))
        self.process = self.launch()

    def launch(self) -> Process:
        """Start a process that writes to its log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command_line, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def stop(self, *, seconds: float = 30.0) -> int:
        """SIGTERM, once it has begun, where it tells that in its log; return the exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        with suppress(TimeoutError):
            # All that a test waits for may have been done before the last start: a moment ago.
            async with asyncio.timeout(10):
                while process.poll() is None and len(self.said("bridge started")) == self._begun:
                    await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def close(self) -> None:
        """Kill it if it runs, and let go of its port."""
        self.kill()
        self._reserved.close()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of `oscar-bridge` with this daemon's configuration."""
        return subprocess.run(
            [sys.executable, "-m", "bridge", *arguments, "-c", str(self.file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def lines(self) -> list[dict[str, Any]]:
        """Return the log so far; a line that is still being written is not part of it."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._seen)
                written = log.read()
            whole = written[: written.rfind(b"\n") + 1]
            self._seen += len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return self._lines

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return log lines with this event and these fields."""
        return [line for line in self.lines() if line["event"] == event and fields.items() <= line.items()]

    async def says(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return such lines once there are any: a line is written moments after what it tells of."""
        await until(lambda: self.said(event, **fields), what=f"the log line {event!r}")
        return self.said(event, **fields)

    async def ready(self) -> dict[str, Any] | None:
        """Return the answer of /readyz; None while nobody answers."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(f"http://127.0.0.1:{self.port}/readyz") as answer,
            ):
                document = await answer.json()
                assert (answer.status == 200) is document["ready"]
                return dict(document)
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def is_up(self, *, seconds: float = 30.0) -> None:
        """Return once it answers, ready or not."""
        async with asyncio.timeout(seconds):
            while await self.ready() is None:
                await asyncio.sleep(0.02)

    async def becomes_ready(self, *, seconds: float = 30.0) -> None:
        """Return once /readyz has nothing to tell; fails after `seconds`."""
        last: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(seconds):
                while last is None or not last["ready"]:
                    await asyncio.sleep(0.02)
                    last = await self.ready()
        except TimeoutError:
            raise AssertionError(f"not ready in {seconds:g} s: {last}\n{self.tail()}") from None

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return samples by name and sorted labels."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"http://127.0.0.1:{self.port}/metrics") as answer,
        ):
            text = await answer.text()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metric(self, name: str, **labels: str) -> float:
        """Return one sample; 0 where there is none."""
        return (await self.metrics()).get((name, tuple(sorted(labels.items()))), 0.0)

    def tail(self, characters: int = 3000) -> str:
        """Return the end of its log, for the message of a failure."""
        return self.log.read_text()[-characters:] if self.log.exists() else ""
