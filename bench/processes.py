"""The processes of the bench: started on their own cores, watched from the outside, ended by their ids."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import trustme

from bench.bare import ACCESS_KEY_ID, POLLERS, REGION, SECRET_ACCESS_KEY
from bench.clock import cpu_clock
from bridge.sandbox.kafka import broker
from bridge.sandbox.servers import free_port

_T = TypeVar("_T")

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_WAIT_SECONDS = 300.0

CONFIGURATION = """\
state_dir: {state}
http: {{port: 0}}
drain_seconds: 1
clusters:
  sink: {{endpoint: {sink}, auth: {{type: basic, username: oscar, password: bench}}{trust}}}
services:
{services}
sources:
  uploads: {source}
routes:
{routes}
"""
WHEN = """when: 'data.size > 0 && subject.endsWith(".nc")', """
"""The route of the budget."""


def service(key: str, workers: int, rate: str = "") -> str:
    """Give a service, for CONFIGURATION. Its events are tried again soon, and never given up."""
    limits = f"concurrency: {workers}" + (f", rate: {rate}" if rate else "")
    retry = "max_attempts: 1000, max_backoff: 50ms"
    return f"  {key}: {{cluster: sink, limits: {{{limits}}}, retry: {{{retry}}}}}"


def route(key: str, when: str = "") -> str:
    """Give the route to a service, for CONFIGURATION."""
    return f"  - {{from: uploads, {when}to: {key}}}"


def kafka_source(bootstrap: str, topic: str, group: str, session_seconds: int) -> str:
    """Give the source of a topic, for CONFIGURATION."""
    return (
        f'{{type: kafka, bootstrap_servers: "{bootstrap}", topics: [{topic}], group_id: {group}, '
        f"session_timeout: {session_seconds}s}}"
    )


def sqs_source(queue: str) -> str:
    """Give the source of a queue, for CONFIGURATION."""
    return (
        f'{{type: sqs, queue: "{queue}", pollers: {POLLERS}, region: {REGION}, '
        f"access_key_id: {ACCESS_KEY_ID}, secret_access_key: {SECRET_ACCESS_KEY}}}"
    )


@dataclass(frozen=True, slots=True)
class Cores:
    """Where what is measured runs, and where all the rest does."""

    measured: frozenset[int]
    others: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Keep the last core for what is measured; of a single one everything runs on it."""
        *others, measured = sorted(os.sched_getaffinity(0))
        return cls(frozenset({measured}), frozenset(others or {measured}))


class Watched:
    """A running process that is measured."""

    def __init__(self, process: Process, began: int) -> None:
        self.process = process
        self.began = began
        """When it was started: CLOCK_MONOTONIC, in ns."""

    def memory(self) -> tuple[float, float]:
        """Give resident memory now, and at its highest so far, in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = dict(line.split(":", 1) for line in text.splitlines())
        now, most = (int(found[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, most

    def cpu_ns(self) -> int:
        """Give the CPU time it has used, in all its threads."""
        return time.clock_gettime_ns(cpu_clock(self.process.pid))

    def has_children(self) -> bool:
        """Return whether there are processes that it started: their CPU time is not its own."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # a process that has ended since
                if int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == self.process.pid:
                    return True
        return False

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` while the process lives. Raises RuntimeError when that ends, or the time does."""
        ended = asyncio.ensure_future(self.process.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({ended, task}, timeout=_WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            what = f"ended with status {self.process.returncode}" if ended.done() else "took too long"
            raise RuntimeError(f"what was measured {what}")
        finally:
            ended.cancel()
            task.cancel()


@asynccontextmanager
async def watched(cores: Cores, *command: str, log: Path) -> AsyncIterator[Watched]:
    """Run `command` on the measured core; standard output is a pipe, errors go to `log`."""
    began = time.monotonic_ns()
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=errors, start_new_session=True
        )
    os.sched_setaffinity(process.pid, cores.measured)
    try:
        yield Watched(process, began)
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class _Client:
    """Asks a stand-in what it has seen."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def _ask(self, target: str) -> dict[str, int]:
        async with self._session.get(self._url + target) as response:
            found: dict[str, int] = await response.json()
            return found


class SinkClient(_Client):
    """Asks the sink."""

    def __init__(self, session: aiohttp.ClientSession, url: str, secure_url: str, authority: Path) -> None:
        super().__init__(session, url)
        self.url = url
        """OSCAR's."""
        self.secure_url = secure_url
        self.authority = authority
        """PEM: who vouches for the certificate at `secure_url`."""

    async def begin(
        self,
        *,
        delay: float = 0.0,
        others: float = 0.0,
        one_fails_in: int = 0,
        arrivals: bool = False,
        every_service: bool = False,
    ) -> None:
        """Count from nothing, and answer as `bench.sink.Figures` does; note when each POST came.

        With `every_service` POSTs for others than `plants` count too.
        """
        target = f"/bench/begin?delay={delay}&others={others}&one_fails_in={one_fails_in}"
        more = ("&arrivals=yes" if arrivals else "") + ("&all=yes" if every_service else "")
        await self._ask(target + more)

    async def watch(self, pid: int) -> None:
        """Let it read the clock of the CPU time of a process at the first and the last POST."""
        await self._ask(f"/bench/watch?pid={pid}")

    async def after(self, posts: int) -> dict[str, int]:
        """Wait for so many POSTs; give what `bench.sink.Figures.after` does."""
        return await self._ask(f"/bench/after?posts={posts}")

    async def hold(self, answers: int) -> int:
        """Keep answers back, wait until there are so many of them, and give the POSTs there were by then."""
        return (await self._ask(f"/bench/hold?answers={answers}"))["posts"]

    async def release(self) -> None:
        """Send the answers that were kept back."""
        await self._ask("/bench/release")

    async def arrivals(self) -> dict[int, int]:
        """Give when each record came, in ns."""
        return {int(number): at for number, at in (await self._ask("/bench/arrivals")).items()}


class QueueClient(_Client):
    """Asks the queue."""

    @property
    def url(self) -> str:
        """The queue's, as SQS's clients name it."""
        return f"{self._url}/123456789012/bench"

    async def begin(self, messages: int, visibility: float, *, notifications: bool = False) -> None:
        """Hold so many messages, and nothing else; `visibility` is the queue's timeout in seconds.

        They are the bench's records, or S3's `notifications`.
        """
        kind = "&notifications=yes" if notifications else ""
        await self._ask(f"/bench/begin?messages={messages}&visibility={visibility}{kind}")

    async def after(self, deleted: int) -> dict[str, int]:
        """Wait for so many to be deleted; give `receives` in calls, `received` and `deleted` in messages."""
        return await self._ask(f"/bench/after?deleted={deleted}")


@asynccontextmanager
async def sink(directory: Path) -> AsyncIterator[SinkClient]:
    """Run the sink while inside; its certificate is made in `directory`."""
    authority, server = trustme.CA(), directory / "server.pem"
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(server)
    async with _stand_in("bench.sink", str(server), urls=2) as (session, url, secure_url):
        yield SinkClient(session, url, secure_url, directory / "ca.pem")


@asynccontextmanager
async def queue() -> AsyncIterator[QueueClient]:
    """Run the queue while inside."""
    async with _stand_in("bench.queue") as (session, url):
        yield QueueClient(session, url)


@asynccontextmanager
async def _stand_in(*arguments: str, urls: int = 1) -> AsyncIterator[tuple[Any, ...]]:
    """Run `python -m arguments`; gives a session to ask it in, and the `urls` that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            printed = [(await process.stdout.readline()).decode().strip() for _ in range(urls)]
        timeout = aiohttp.ClientTimeout(total=_WAIT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield session, *printed
    finally:
        await _end(process)


@asynccontextmanager
async def prompt_broker() -> AsyncIterator[str]:
    """Run a broker that answers a fetch when a record comes (see `bench.longpoll`); gives its address."""
    port = free_port()
    async with broker(advertised_port=port) as behind:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.longpoll", str(port), behind.rpartition(":")[2]),
            stdout=PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(_START_SECONDS):
                await process.stdout.readline()
            yield f"127.0.0.1:{port}"
        finally:
            await _end(process)
