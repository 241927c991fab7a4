"""Every alert is seen to fire, and to end, on a real bridge that a real Prometheus scrapes.

Prometheus' time is compressed: the rules are those of `deploy/` with every duration divided.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sandbox.oscar.faults import Fault
from bridge.sandbox.servers import free_port
from tests.alerts.rules import document, rules
from tests.net.authority import NOW, Authority
from tests.promises.dcache_world import ROOT, DcacheWorld
from tests.servers import debian
from tests.servers.mock_kafka import MockKafka
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto
from tests.servers.prometheus import Prometheus, compressed
from tests.support.daemon import Daemon
from tests.support.world import World

pytestmark = pytest.mark.prove


@contextmanager
def prometheus(scale: float, *, interval: float = 0.2) -> Iterator[Prometheus]:
    debian.need("prometheus")
    with Prometheus(compressed(document(), scale), interval=interval) as running:
        yield running


async def end(running: Prometheus, **alerts: str) -> None:
    """Return once these alerts, each of a part of the bridge, have ended."""
    for alert, part in alerts.items():
        await running.ends(f"OscarBridge{alert}", **_labels(part))


async def fire(running: Prometheus, **alerts: str) -> None:
    """Return once these alerts have fired, each for a part of the bridge (`service=plants`), in any order."""
    await asyncio.gather(
        *(running.fires(f"OscarBridge{alert}", **_labels(part)) for alert, part in alerts.items())
    )


def _labels(part: str) -> dict[str, str]:
    return dict(one.split("=", 1) for one in part.split(",") if one)


async def scraped(running: Prometheus, daemon: Daemon) -> None:
    """Return once this very process of `daemon` was scraped."""
    name = "process_start_time_seconds"
    async with asyncio.timeout(30):
        started = await daemon.metric(name)
        while await running.value(f'{name}{{instance="127.0.0.1:{daemon.port}"}}') != started:
            await asyncio.sleep(0.05)


async def _repeat(act: Callable[[], Awaitable[object]]) -> NoReturn:
    while True:
        await act()
        await asyncio.sleep(0.5)


async def test_what_services_do(world: World) -> None:
    await world.bed.kafka.create_topic(f"{world.bed.name}-held")
    oscar = world.oscar
    oscar.settings.access_token_seconds = 2.0
    for name in ("unparked", "idle"):
        oscar.add_service(name)
    oscar.add_service("tokened", owner="somebody")
    configuration = world.configuration()
    configuration["clusters"]["tokens"] = {
        "endpoint": oscar.url,
        "auth": {
            "type": "oidc",
            "refresh_token": oscar.oidc.grant("somebody"),
            "token_endpoint": f"{oscar.url}/oidc/token",
            "client_id": "bridge",
        },
    }
    retry = {"max_backoff": "0.2s"}
    configuration["services"] = {
        "plants": {
            "cluster": "main",
            "park_after": "0.1s",
            "max_event_bytes": 40_000,
            "retry": {**retry, "give_up_after": "16s"},
        },
        "tokened": {"cluster": "tokens", "retry": retry, "park_after": "0.1s"},
        "unparked": {"cluster": "main", "park": False, "retry": retry},
        "idle": {"cluster": "main"},
    }
    configuration["sources"]["held"] = world.source(
        topics=[f"{world.bed.name}-held"], group_id=f"{world.bed.name}-held", max_in_flight=2
    )
    configuration["routes"] = [
        {"from": "uploads", "to": "plants"},
        {"from": "uploads", "to": "tokened", "when": "data.n < 3"},
        {"from": "held", "to": "unparked"},
    ]
    configuration["store"] = {"max_bytes": "1MiB"}
    # A journal that takes no line, as one whose disk is too slow.
    daemon = world.daemon(configuration, "from bridge.store import journal; journal.MOST_WAITING = 0")
    with prometheus(600) as running:
        running.watch(daemon.port)
        too_large = b'{"n": 10, "x": "%s"}' % (b"x" * 41_000)
        daemon.start()
        for _ in range(2):  # the second of a known cause
            # Again and again, since a quarter of an hour is short here.
            dying = asyncio.create_task(_repeat(lambda: world.bed.produce([too_large])))
            await fire(running, DeadLetters="service=plants,cause=too_large")
            dying.cancel()
            await end(running, DeadLetters="service=plants")

        await oscar.outage()
        paused = await asyncio.to_thread(daemon.command, "pause", "service", "idle")
        assert paused.returncode == 0, paused.stderr
        await world.produce_numbers(60, x="x" * 14_000)
        await world.bed.kafka.produce(f"{world.bed.name}-held", [b"{}"] * 10)
        outage = {
            "JournalLinesLost": "",
            "ServiceRefused": "service=plants",
            "NotReady": "",
            "FallsBehind": "service=plants",
            "StoreFills": "",
            "CredentialFails": "cluster=tokens",
            "Stalled": "source=held",
            "EventsWait": "service=plants",
            "EventStuck": "source=held",
            "EventsWillBeGivenUp": "service=plants",
        }
        await fire(running, **outage)
        await oscar.end_outage()
        await end(running, **outage)
        await world.all_jobs()

        long = {"DeadLettersWait": "service=plants,cause=too_large", "Paused": "service=idle"}
        await fire(running, **long)
        assert daemon.command("resume", "service", "idle").returncode == 0
        assert daemon.command("dead-letters", "discard", "--all").returncode == 0
        await end(running, **long, DeadLetters="", JournalLinesLost="")
        assert await running.firing() == []
        assert (await daemon.metrics()).keys() >= {
            ("bridge_last_accepted_timestamp_seconds", (("service", service),))
            for service in ("plants", "tokened", "unparked")
        }


@pytest.fixture
async def dcache_world(tmp_path: Path) -> AsyncIterator[DcacheWorld]:
    async with SandboxDcache() as site, SandboxOscar(Settings(simulate=True)) as oscar:
        await site.mkdir(ROOT)
        oscar.add_service("plants")
        world = DcacheWorld(tmp_path, site, oscar)
        try:
            yield world
        finally:
            world.close()


async def test_what_comes_and_goes(dcache_world: DcacheWorld) -> None:
    site, oscar = dcache_world.site, dcache_world.oscar
    daemon = dcache_world.daemon()

    async def reaches(name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(30):
            while await daemon.metric(name, **labels) < value:
                await asyncio.sleep(0.02)

    with prometheus(200) as running:
        running.watch(daemon.port)
        daemon.start()
        await daemon.becomes_ready()
        for number in range(7):
            oscar.faults.set(Fault(statuses={401: 1.0}), "plants")
            await site.upload(f"{ROOT}/{number}", b"x")
            await reaches("bridge_lane_shuts_total", number + 1, service="plants")
            oscar.faults.clear()
            await reaches("bridge_lane_open", 1, service="plants")
        await fire(running, ServiceComesAndGoes="service=plants")
        for number in range(5):
            site.trouble.lose_events()
            site.trouble.drop_streams()
            await reaches("bridge_source_losses_total", number + 1, source="arrivals")
            await reaches("bridge_source_up", 1, source="arrivals")
        gone = {
            "ServiceComesAndGoes": "service=plants",
            "SourceComesAndGoes": "source=arrivals",
            "EventsMissed": "source=arrivals",
        }
        await fire(running, SourceComesAndGoes="source=arrivals", EventsMissed="source=arrivals")
        site.faults.stream_status = 503
        site.trouble.drop_streams()
        await fire(running, SourceDown="source=arrivals")
        site.faults.stream_status = 0
        gone["SourceDown"] = "source=arrivals"
        await end(running, **gone)


async def test_what_sources_tell(
    world: World, mock_kafka: MockKafka, moto: Moto, unique: str, tmp_path: Path
) -> None:
    authority = Authority("site")
    ours = tmp_path / "ours.pem"
    ours.write_bytes(authority.issue("127.0.0.1", ends=NOW + timedelta(seconds=600))[1])
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    queue = await moto.create_queue(unique, VisibilityTimeout=30)
    kafka = {"type": "kafka", "topics": [unique], "group_id": unique}
    sources = {
        "torn": {**kafka, "bootstrap_servers": mock_kafka.bootstrap_servers, "session_timeout": "6s"},
        "shown": {
            **kafka,
            "bootstrap_servers": f"127.0.0.1:{free_port()}",
            "security_protocol": "SSL",
            "tls": {"ca_file": str(tmp_path / "ca.pem"), "cert_file": str(ours)},
        },
        "bucket": {
            "type": "sqs",
            "queue": unique,
            "region": REGION,
            "endpoint_url": moto.url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "wait_seconds": 1,
        },
    }
    routes = [{"from": source, "to": "plants"} for source in sources]
    prelude = "from bridge.net import certificates; certificates._LOOK_SECONDS = 0.2"
    daemon = world.daemon(world.configuration(sources=sources, routes=routes), prelude)
    shown_by = world.daemon(prelude=prelude)
    by_tls = yaml.safe_load(shown_by.file.read_text())
    by_tls["http"]["tls"] = {"cert_file": str(ours)}
    shown_by.file.write_text(yaml.safe_dump(by_tls))
    async with AIOKafkaProducer(bootstrap_servers=mock_kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(unique, b"{}", partition=0)
    async with AIOKafkaConsumer(
        bootstrap_servers=mock_kafka.bootstrap_servers, group_id=unique, enable_auto_commit=False
    ) as consumer:
        consumer.assign([TopicPartition(unique, 0)])
        await consumer.commit({TopicPartition(unique, 0): 500})  # of records that are not there any more
    world.oscar.faults.set(Fault(delay_seconds=1.0))
    there = {
        "EventsLost": "source=torn",
        "CertificateExpires": "source=shown",
        "HttpCertificateExpires": "",
        "ReceiptsStale": "source=bucket",
    }
    with prometheus(600) as running:
        running.watch(daemon.port, by_tls=[shown_by.port])
        daemon.start()
        shown_by.start()
        await running.fires("OscarBridgeEventsLost")
        await queue.send(*(f'{{"n": {n}}}' for n in range(30)))
        async with asyncio.timeout(30):
            while await daemon.metric("bridge_source_in_flight", source="bucket") < 12:
                await asyncio.sleep(0.05)
        await queue.purge()
        await fire(running, **there)
        acknowledged = await asyncio.to_thread(daemon.command, "acknowledge", "source torn")
        assert acknowledged.returncode == 0, acknowledged.stderr
        ours.write_bytes(authority.issue("127.0.0.1")[1])
        await end(running, **there)


def _alone(directory: Path, prelude: str = "") -> Daemon:
    """Return a bridge without a broker and a cluster: this is about the process."""
    nobody = f"127.0.0.1:{free_port()}"
    source = {"type": "kafka", "bootstrap_servers": nobody, "topics": ["t"], "group_id": "g"}
    auth = {"type": "basic", "username": "u", "password": "p"}
    configuration = {
        "clusters": {"main": {"endpoint": f"http://{nobody}", "auth": auth}},
        "services": {"plants": {"cluster": "main"}},
        "sources": {"uploads": source},
        "routes": [{"from": "uploads", "to": "plants"}],
    }
    return Daemon(directory, configuration, prelude)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    daemons = _alone(tmp_path / "one"), _alone(tmp_path / "two")
    yield daemons
    for daemon in daemons:
        daemon.close()


async def test_what_becomes_of_the_process(two: tuple[Daemon, Daemon]) -> None:
    one, other = two
    this = f"instance=127.0.0.1:{one.port}"
    with prometheus(400) as running:
        other.start()
        running.watch(one.port, other.port)
        for _ in range(5):
            one.kill()
            one.start()
            await one.is_up()
            await scraped(running, one)
        await fire(running, Restarts=this)
        one.kill()
        await fire(running, Down=this)
        down = [each["instance"] for each in await running.firing() if each["alertname"] == "OscarBridgeDown"]
        assert down == [f"127.0.0.1:{one.port}"]
        one.start()
        await end(running, Down=this)
        await running.ends("OscarBridgeAbsent")
        async with asyncio.timeout(30):
            while await running.value("count(bridge_build_info offset 10s)") != 2:  # an hour, for the rules
                await asyncio.sleep(0.1)
        running.watch(one.port)
        await fire(running, Vanished="job=bridge")
        one.kill()
        await fire(running, Absent="")
        one.start()
        await end(running, Absent="", Vanished="job=bridge", Restarts=this)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no byte more until it is read."""
    reading, writing = os.pipe()
    os.write(writing, b"." * fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096))
    yield reading, writing
    os.close(reading)
    os.close(writing)


async def test_what_the_process_can_not_do(tmp_path: Path, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    busy = tmp_path / "busy"
    # The interpreter stands still in a call that keeps its lock, as it does on a machine that swaps.
    prelude = f"""
from bridge.telemetry import lag, writer
lag._SECONDS, writer.MOST_LINES = 0.05, 1
def stand_still():
    import ctypes, os, time
    while True:
        if os.path.exists({str(busy)!r}):
            ctypes.PyDLL(None).usleep(400_000)
        time.sleep(0.01)
import threading
threading.Thread(target=stand_still, daemon=True).start()
"""
    daemon = _alone(tmp_path / "one", prelude)
    process = subprocess.Popen(daemon.command_line, stderr=writing)
    try:
        with prometheus(100, interval=0.5) as running:
            running.watch(daemon.port)
            await daemon.is_up()
            await fire(running, LogLinesDropped="")
            draining = asyncio.create_task(asyncio.to_thread(_drain, reading))
            busy.touch()
            await fire(running, LoopLags="")
            busy.unlink()
            await end(running, LogLinesDropped="", LoopLags="")
            process.kill()
            os.write(writing, b"the end")
            await draining
    finally:
        process.kill()
        process.wait()
        daemon.close()


def _drain(reading: int) -> None:
    while not os.read(reading, 65536).endswith(b"the end"):
        pass


def test_every_alert_is_among_them() -> None:
    """Together the tests above name every alert that there is."""
    here = Path(__file__).read_text(encoding="utf-8")
    missing = {name for name in rules() if name.removeprefix("OscarBridge") not in here}
    assert not missing
