"""A file of DCNiOS, imported and run as it is, makes jobs of what comes to all its sources."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from bridge.cli import main
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.testing import until
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto
from tests.servers.tansu import Tansu
from tests.support.daemon import Daemon

FILE = """\
nifi:
  endpoint: https://nifi.example.org
  user: admin
  password: swordfish
  dcache:
    - name: arrivals of files
      endpoint: {dcache}
      user: bridge
      password: bridge
      folder: /data/in/
      statefile: state
  Source:
    Kafka:
      - name: kafka
        bootstrap_servers: {kafka}
        topic: {unique}
        group_id: {unique}
        security_protocol: PLAINTEXT
        sasl_username: dummy
        sasl_password: dummy
        separate_by_key: "true"
        message_demarcator: ";"
    GetS3:
      - name: bucket
        AWS_DEFAULT_REGION: {region}
        AWS_S3_BUCKET: {unique}
        AWS_ACCESS_KEY_ID: {access}
        AWS_SECRET_ACCESS_KEY: {secret}
  Destination:
    OSCAR:
      - name: invoke
        endpoint: {oscar}/
        service: plants
        user: {user}
        password: {password}
        components: [{{name: InvokeOSCAR, seconds: 0.02}}]
      - name: invoke by token
        endpoint: {oscar}
        service: flood
        token: {token}
  connection:
    - {{from: arrivals of files, to: invoke}}
    - {{from: kafka, to: invoke}}
    - {{from: bucket, to: invoke}}
    - {{from: kafka, to: invoke by token}}
"""


def record(bucket: str, key: str) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": REGION,
        "eventTime": "2026-01-02T03:04:05.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key, "size": 1, "eTag": key, "sequencer": "0055AED6DCD90281E5"},
        },
    }


async def test_a_file_of_dcnios_makes_jobs_of_what_comes_to_all_its_sources(
    tmp_path: Path, tansu: Tansu, moto: Moto, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b'{"n": 0}'])
    await tansu.produce(unique, [(b"k", b'{"n": 1}'), (b"k", b'{"n": 2}')])
    await tansu.commit(unique, {TopicPartition(unique, 0): 1})  # as NiFi has, which read the first of them
    queue = await moto.create_queue(f"{unique}_events")
    async with SandboxDcache() as site, SandboxOscar(Settings(simulate=True)) as oscar:
        await site.mkdir("/data/in")
        oscar.add_service("plants")
        token = oscar.add_service("flood").token
        file = tmp_path / "dcnios.yaml"
        login = {"user": oscar.settings.username, "password": oscar.settings.password, "token": token}
        aws = {"region": REGION, "access": ACCESS_KEY_ID, "secret": SECRET_ACCESS_KEY}
        systems = {"dcache": site.base, "kafka": tansu.bootstrap_servers, "oscar": oscar.url}
        file.write_text(FILE.format(unique=unique, **login, **aws, **systems))
        daemon = Daemon(tmp_path / "daemon", {})
        try:
            assert main(["import-dcnios", str(file), "-o", str(daemon.directory), "--force"]) == 0
            for name, value in {
                "STATE_DIR": daemon.directory / "state",
                "HTTP__PORT": daemon.port,
                "SOURCES__BUCKET__ENDPOINT_URL": moto.url,  # DCNiOS knows no AWS but AWS
                "SOURCES__BUCKET__WAIT_SECONDS": 1,
            }.items():
                monkeypatch.setenv(f"BRIDGE__{name}", str(value))
            daemon.start()
            await daemon.becomes_ready()
            await site.upload("/data/in/leaf.nc", b"leaf")
            await queue.send({"Records": [record(unique, "one.nc"), record(unique, "two.nc")]})
            await until(
                lambda: len(oscar.ledger.created) == 5,
                what=f"5 jobs, there are {len(oscar.ledger.created)}; {daemon.log.read_text()[-3000:]}",
            )
            assert await daemon.stop() == 0
        finally:
            daemon.close()
        joined = [b64encode(b'{"n": 1};{"n": 2}')]
        assert oscar.ledger.bodies("flood") == joined, "NiFi had the first record, and joins those of one key"
        plants = oscar.ledger.bodies("plants")
        assert [body for body in plants if not body.startswith(b"{")] == joined
        bodies = [json.loads(body) for body in plants if body.startswith(b"{")]
        assert {body["Records"][0]["s3"]["object"]["key"] for body in bodies if "Records" in body} == {
            "one.nc",
            "two.nc",
        }
        assert [body["event"]["name"] for body in bodies if "event" in body] == ["leaf.nc"]
