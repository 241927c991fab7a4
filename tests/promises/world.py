"""A whole bridge as a process of its own, between a real broker and the sandbox OSCAR."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.identity import invocation_name
from bridge.sandbox.oscar import SandboxOscar
from bridge.store.history import Line, Needle, read
from tests.servers.forks import Forked, run
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, MotoQueue
from tests.servers.tansu import Tansu


async def until(condition: Callable[[], object], *, seconds: float = 60.0, what: str = "") -> None:
    """Return once `condition()` holds; fails with `what` when it does not in time."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


def plants_of(oscar: SandboxOscar) -> dict[str, Any]:
    """Configure that cluster, and its service `plants`."""
    return {
        "clusters": {
            "main": {
                "endpoint": oscar.url,
                "auth": {
                    "type": "basic",
                    "username": oscar.settings.username,
                    "password": oscar.settings.password,
                },
            }
        },
        "services": {"plants": {"cluster": "main", "retry": {"max_backoff": "1s"}}},
    }


class Daemon:
    """One `oscar-bridge run`; its log lines are kept in a file.

    `prelude` is Python that runs before it, to make hours of a server's limits seconds. What is told until it
    has held for half a minute is told for a second. It is forked from a process that has its modules, unless
    it is `fresh`, such as for its memory to be measured.
    """

    def __init__(
        self, directory: Path, configuration: dict[str, Any], prelude: str = "", *, fresh: bool = False
    ) -> None:
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
        self.store = Path(configuration["state_dir"]) / "events.sqlite3"
        self.process: Forked | subprocess.Popen[bytes] | None = None
        self._fresh = fresh
        self._lines: list[dict[str, Any]] = []
        self._seen = 0
        """Bytes of the log that those lines were read from."""
        self._begun = 0
        """How often it had begun before the last start."""
        self._prelude = f"from bridge.core import steady; steady.HELD_SECONDS = 1.0\n{prelude}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def command_line(self) -> list[str]:
        """What makes it a process that shares nothing with the test's."""
        code = f"import sys\n{self._prelude}\nfrom bridge.cli import main\nsys.exit(main())"
        return [sys.executable, "-c", code, "run", "-c", str(self.file)]

    def start(self) -> None:
        self._begun = len(self.said("bridge started"))
        if self._fresh:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(self.command_line, stdout=log, stderr=log)
            return
        # The modules are there already, and with them what they had of it.
        prelude = f"{self._prelude}\nfrom bridge.pipeline import runner; runner.HELD_SECONDS = 1.0"
        arguments = ["run", "-c", str(self.file)]
        self.process = Forked(arguments, out=self.log, err=self.log, environment=os.environ, prelude=prelude)

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def stop(self, *, seconds: float = 30.0) -> int:
        """SIGTERM, once it has begun, where it tells that in its log; gives the exit status."""
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
        environment = {"PATH": os.environ.get("PATH", "")}
        return run([*arguments, "-c", str(self.file)], environment=environment, timeout=30)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far; a line that is still being written is not part of it."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._seen)
                written = log.read()
            whole = written[: written.rfind(b"\n") + 1]
            self._seen += len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return self._lines

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Log lines with this event and these fields."""
        return [line for line in self.lines() if line["event"] == event and fields.items() <= line.items()]

    def noted(self, *what: str, **fields: object) -> list[Line]:
        """Lines of the journal so far with one of these words and these fields, the oldest first."""
        found = read(self.store.parent, Needle("*", "glob"), limit=1_000_000)
        return [
            line
            for line in found.lines
            if line.what in what and all(getattr(line, name) == value for name, value in fields.items())
        ]

    async def says(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Give such lines once there are any: a line is written moments after what it tells of."""
        await until(lambda: self.said(event, **fields), what=f"the log line {event!r}")
        return self.said(event, **fields)

    async def ready(self) -> dict[str, Any] | None:
        """The answer of /readyz; None while nobody answers."""
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
        last: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(seconds):
                while last is None or not last["ready"]:
                    await asyncio.sleep(0.02)
                    last = await self.ready()
        except TimeoutError:
            raise AssertionError(
                f"not ready in {seconds:g} s: {last}\n{self.log.read_text()[-3000:]}"
            ) from None

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Samples by name and sorted labels."""
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
        return (await self.metrics()).get((name, tuple(sorted(labels.items()))), 0.0)

    async def parked(self, service: str) -> int:
        """How many events wait in the store for `service`."""
        return int(await self.metric("bridge_kept_events", service=service, reason="parked"))

    def kept(self) -> list[Kept]:
        """What is in the store, in the order in which it came there."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT id, service, reason, attributes FROM kept ORDER BY number")
            return [
                Kept(event_id, service, reason, json.loads(attributes))
                for event_id, service, reason, attributes in rows
            ]


class Kept(NamedTuple):
    """A row of the store."""

    id: str
    service: str
    reason: str
    attributes: dict[str, str]


class World:
    """One topic, one OSCAR, and as many daemons as a test wants; those left are killed at the end."""

    def __init__(self, directory: Path, kafka: Tansu, oscar: SandboxOscar, name: str) -> None:
        self.directory = directory
        self.kafka = kafka
        self.oscar = oscar
        self.name = name
        self.daemons: list[Daemon] = []
        self.ids: dict[int, str] = {}
        """Number of an event → its id, for all that was produced."""

    def configuration(self, **more: Any) -> dict[str, Any]:
        """One source into the service `plants`; `more` replaces top-level keys."""
        return {
            **plants_of(self.oscar),
            "sources": {"uploads": self.source()},
            "routes": [{"from": "uploads", "to": "plants"}],
            **more,
        }

    def source(self, **more: Any) -> dict[str, Any]:
        return {
            "type": "kafka",
            "bootstrap_servers": self.kafka.bootstrap_servers,
            "topics": [self.name],
            "group_id": self.name,
            "session_timeout": "1s",
            **more,
        }

    def daemon(self, configuration: dict[str, Any] | None = None, prelude: str = "") -> Daemon:
        """Make a daemon, not started."""
        directory = self.directory / f"daemon-{len(self.daemons)}"
        daemon = Daemon(directory, configuration or self.configuration(), prelude)
        self.daemons.append(daemon)
        return daemon

    async def produce(
        self, values: Sequence[bytes | None], *, keys: Sequence[bytes] | None = None
    ) -> list[str]:
        """Put values into the topic; gives the ids of their events."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap_servers, linger_ms=5)
        await producer.start()
        try:
            sent = [
                await producer.send(self.name, value, key=keys[at] if keys else None)
                for at, value in enumerate(values)
            ]
            places = [((told := await one).partition, told.offset) for one in sent]
        finally:
            await producer.stop()
        # What the producer is told of a record's timestamp is not always what the broker keeps.
        kept = await self._timestamps(set(places))
        return [f"{self.name}/{partition}/{offset}@{kept[partition, offset]}" for partition, offset in places]

    async def _timestamps(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap_servers)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.name, part) for part in {part for part, _ in wanted}])
            await consumer.seek_to_beginning()
            async with asyncio.timeout(30):
                while not wanted <= found.keys():
                    for place, records in (await consumer.getmany(timeout_ms=500)).items():
                        found |= {(place.partition, one.offset): one.timestamp for one in records}
        finally:
            await consumer.stop()
        return found

    async def produce_numbers(self, count: int, **more: Any) -> None:
        """Put `count` events `{"n": …}` into the topic, numbered on."""
        first = len(self.ids)
        numbers = range(first, first + count)
        ids = await self.produce([json.dumps({"n": n, **more}).encode() for n in numbers])
        self.ids.update(zip(numbers, ids, strict=True))

    def job_of(self, number: int, service: str = "plants", identity: str = "uploads") -> str:
        """The name of the job of an event, from its id alone."""
        return invocation_name(identity, self.ids[number], service)

    def jobs_by_number(self, service: str = "plants") -> Counter[int]:
        """How many jobs the cluster made of each numbered event, by their bodies."""
        return Counter(json.loads(body)["n"] for body in self.oscar.ledger.bodies(service))

    def assert_one_job_an_event(self, service: str = "plants", numbers: Sequence[int] | None = None) -> None:
        expected = list(self.ids) if numbers is None else list(numbers)
        made = self.jobs_by_number(service)
        missing = [n for n in expected if not made[n]]
        twice = {n: count for n, count in made.items() if count > 1}
        assert not missing, f"{len(missing)} lost, such as {missing[:5]}"
        assert not twice, f"{len(twice)} doubled, such as {dict(list(twice.items())[:5])}"
        assert set(made) == set(expected)
        for number in expected:
            assert self.oscar.ledger.created[self.job_of(number, service)] == 1

    async def all_jobs(self, *, seconds: float = 60.0, service: str = "plants") -> None:
        """Return once every event has a job."""
        ledger = self.oscar.ledger
        names = [self.job_of(n, service) for n in self.ids]
        try:
            await until(lambda: all(name in ledger.created for name in names), seconds=seconds)
        except AssertionError:
            missing = sum(name not in ledger.created for name in names)
            tail = "\n".join(d.log.read_text()[-3000:] for d in self.daemons if d.log.exists())
            raise AssertionError(f"{missing} of {len(names)} events have no job\n{tail}") from None

    async def committed(self) -> int:
        """Sum of the group's committed offsets."""
        return sum((await self.kafka.committed(self.name, self.name)).values())

    async def all_settled(self, *, seconds: float = 30.0) -> None:
        """Return once every record of the topic is committed."""
        last = 0
        try:
            async with asyncio.timeout(seconds):
                while last != len(self.ids):
                    last = await self.committed()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"committed {last} of {len(self.ids)}") from None

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()


class QueueWorld(World):
    """An SQS queue in place of the topic. Its visibility timeout is short: there are many in a test."""

    def __init__(
        self, directory: Path, kafka: Tansu, oscar: SandboxOscar, name: str, queue: MotoQueue
    ) -> None:
        super().__init__(directory, kafka, oscar, name)
        self.queue = queue

    async def redrive_after(self, receipts: int) -> MotoQueue:
        """Have messages that were received so often move to another queue, which is given.

        Their visibility timeout is 2 s from now on: on a busy machine a heartbeat each half a second is late.
        """
        other = await self.queue.moto.create_queue(f"{self.name}-dead")
        policy = {"deadLetterTargetArn": other.arn, "maxReceiveCount": receipts}
        attributes = {"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "2"}
        await self.queue.moto.call(
            "sqs", "set_queue_attributes", QueueUrl=self.queue.url, Attributes=attributes
        )
        return other

    def source(self, **more: Any) -> dict[str, Any]:
        return {
            "type": "sqs",
            "queue": self.queue.name,
            "region": REGION,
            "endpoint_url": self.queue.moto.url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "wait_seconds": 1,
            **more,
        }

    async def produce(
        self, values: Sequence[bytes | None], *, keys: Sequence[bytes] | None = None
    ) -> list[str]:
        assert keys is None
        return await self.queue.send(*[value.decode() for value in values if value is not None])

    async def all_settled(self, *, seconds: float = 30.0) -> None:
        """Return once every message is deleted."""
        last = (-1, -1)
        try:
            async with asyncio.timeout(seconds):
                while last != (0, 0):
                    last = await self.queue.counts()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{last} messages are left") from None
