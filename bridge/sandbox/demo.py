"""The whole way on one machine: Kafka and S3 → bridge → OSCAR, with a few events to see it by."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bridge.sandbox.aws import ACCESS_KEY_ID, BUCKET, QUEUE, REGION, SECRET_ACCESS_KEY, Aws, aws
from bridge.sandbox.kafka import broker, free_port
from bridge.sandbox.oscar import Job, SandboxOscar
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
_EXPECTED = 4  # `empty.nc` has no bytes, so no route wants it
_SECONDS = 60.0


def run(configuration: Path, *, once: bool) -> int:
    """Show records becoming jobs. With `once` end when all did; give the exit status.

    `configuration` is a file that takes the SANDBOX_… variables of `_bridge` from the environment, such as
    `config/sandbox.yaml`.
    """
    logging.configure("warning", "console")
    return asyncio.run(_run(configuration, once=once))


async def _run(configuration: Path, *, once: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with SandboxOscar() as oscar, broker() as bootstrap, aws() as storage:
        oscar.add_service("plant-classification", _SCRIPT)
        oscar.add_service("scan-segmentation", _SEGMENT)
        await _create_topic(bootstrap)
        async with _bridge(configuration, oscar.url, bootstrap, storage) as (bridge, http):
            settings = oscar.settings
            _say(f"OSCAR    {oscar.url}   user {settings.username}, password {settings.password}")
            _say(f"Kafka    {bootstrap}   topic {_TOPIC}")
            _say(f"S3, SQS  {storage.url}   bucket {BUCKET}, queue {QUEUE}, region {REGION}")
            _say(f"bridge   {http}   /livez /readyz /metrics")
            await _put_records(bootstrap)
            _say(f"put {len(_RECORDS)} records into Kafka: {', '.join(_RECORDS)}")
            await storage.put(_OBJECT, b"pixels")
            _say(f"put the object {_OBJECT!r} into the bucket")
            try:
                async with asyncio.timeout(_SECONDS):
                    await _show_jobs(oscar, _EXPECTED, bridge)
            except (TimeoutError, RuntimeError) as error:
                _say(f"not all events became jobs: {str(error) or f'waited {_SECONDS:g} s'}")
                return 1
            _say("empty.nc became none: its size is 0, and the route asks for more")
            if not once:
                _say("put in your own records, or look at the URLs above. Ctrl-C ends it.")
                await _first(asyncio.create_task(stop.wait()), asyncio.create_task(bridge.wait()))
    if bridge.returncode:
        _say(f"the bridge ended with status {bridge.returncode}")
        return 1
    return 0


@asynccontextmanager
async def _bridge(
    configuration: Path, oscar: str, kafka: str, storage: Aws
) -> AsyncIterator[tuple[Process, str]]:
    with tempfile.TemporaryDirectory(prefix="sandbox-bridge-") as state:
        port = free_port()
        environment = {
            **os.environ,
            "SANDBOX_OSCAR": oscar,
            "SANDBOX_KAFKA": kafka,
            "SANDBOX_AWS": storage.url,
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


async def _show_jobs(oscar: SandboxOscar, expected: int, bridge: Process) -> None:
    shown: set[str] = set()
    while len(shown) < expected:
        for job in oscar.jobs.all():
            if job.name not in shown and job.phase in ("Succeeded", "Failed"):
                shown.add(job.name)
                _show(job)
        if bridge.returncode is not None:
            raise RuntimeError(f"the bridge ended with status {bridge.returncode}")
        await asyncio.sleep(0.1)


def _show(job: Job) -> None:
    _say(f"job {job.name} {job.phase}")
    for line in job.log.decode("utf-8", "replace").splitlines():
        if line:
            _say(f"    {line}")


async def _first(*tasks: asyncio.Task[object]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _say(text: str) -> None:
    print(text, flush=True)
