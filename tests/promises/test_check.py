"""`check` and `where` as an operator runs them: mistakes seeded on live systems, each named with its "
"remedy."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import trustme
from yarl import URL

from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sandbox.servers import free_port
from bridge.testing import Proxy
from tests.check.stubs import describing_broker, refusing_broker, silent_server, sqs_that_answers
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto
from tests.support.daemon import Daemon
from tests.support.world import World

SECRETS = ("pa55-of-oscar", "pa55-of-kafka", SECRET_ACCESS_KEY, "refresh-of-nobody")


async def run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command while this process, which is OSCAR too, goes on."""
    return await asyncio.to_thread(daemon.command, *arguments)


def oscar(url: str, **auth: str) -> dict[str, Any]:
    return {
        "endpoint": url,
        "auth": {"type": "basic", "username": "oscar", "password": "sandbox", **auth},
    }


def sqs(url: str, queue: str, region: str = REGION) -> dict[str, Any]:
    return {
        "type": "sqs",
        "queue": queue,
        "region": region,
        "endpoint_url": url,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
    }


# About what, how bad, words of the message, words of the remedy.
SEEDED = [
    ("http", "problem", "is taken by another program", "choose another `http.port`"),
    ("store", "warning", "`store.max_bytes` is", "lower `store.max_bytes`"),
    ("cluster refused", "problem", "connection refused", "is the server running"),
    ("cluster nameless", "problem", "oscar.invalid can't be resolved", "correct the host name"),
    ("cluster distrusted", "problem", "authority unknown here", "`clusters.distrusted.tls.ca_file`"),
    ("cluster plain", "problem", "no TLS connection came about", "another port or no TLS"),
    ("cluster wrong-password", "problem", "refused user oscar", "`clusters.wrong-password.auth.username`"),
    ("cluster expired", "problem", "invalid_grant", "the refresh token has expired"),
    ("cluster old", "warning", "OSCAR 4.0.2 is older than 4.1.0", "upgrade OSCAR"),
    (
        "service plant",
        "problem",
        "no service plant on cluster main; did you mean `plants`?",
        "create the service",
    ),
    ("service shared", "warning", "federated with 1 other", "federation's members"),
    ("service far", "warning", "offloaded to hpc-1", "`services.far.interlink: true`"),
    ("service twice", "problem", "2 services are called twice", "service-token"),
    ("source no-topic", "problem", "topic no-such-topic does not exist", "create the topic"),
    ("source conflict", "problem", "share partitions by `range`", "`sources.conflict.group_id`"),
    ("source short", "warning", "keeps records for 60 s", "raise the topic's `retention.ms`"),
    ("source refused", "problem", "connection refused", "`sources.refused.bootstrap_servers`"),
    ("source wrong-password", "problem", "refused the credentials", "`sources.wrong-password.username`"),
    ("source no-queue", "problem", "queue no-such-queue", "create the queue"),
    ("source wrong-region", "problem", "in region eu-central-1", "`sources.wrong-region.region`"),
    ("source hasty", "warning", "VisibilityTimeout is 5 s", "raise the queue's VisibilityTimeout"),
    ("source hasty", "warning", "keeps messages for 120 s", "MessageRetentionPeriod"),
    ("source hasty", "warning", "after 1 receipts", "raise maxReceiveCount"),
    ("source expired", "problem", "ExpiredToken", "get a new one"),
    (
        "source denied",
        "problem",
        "sqs:DeleteMessage is not allowed",
        "grant the role or user sqs:DeleteMessage",
    ),
]


async def test_twenty_and_more_seeded_mistakes_are_each_named_with_a_remedy(
    world: World, moto: Moto, unique: str, tmp_path: Path
) -> None:
    world.oscar.add_service("shared", federation={"members": [{"type": "oscar", "cluster_id": "other"}]})
    world.oscar.add_service("far", interlink_node_name="hpc-1")
    world.oscar.add_service("twice")
    world.oscar.add_service("twice", owner="ana")
    dead = await moto.create_queue(f"{unique}-dead")
    redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 1})
    await moto.create_queue(unique, VisibilityTimeout=5, MessageRetentionPeriod=120, RedrivePolicy=redrive)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    member = ("consumer-1-5e", "consumer-1", "/10.0.0.7", b"", b"")
    nobody = f"127.0.0.1:{free_port()}"
    async with (
        SandboxOscar(Settings(simulate=True, version="4.0.2")) as old,
        Proxy(URL(world.oscar.url).port or 0, tls=context) as proxy,
        refusing_broker() as refusing,
        describing_broker("t", group=(0, "Stable", "consumer", "range", [member])) as conflict,
        describing_broker("t", retention_ms=60_000) as short,
        sqs_that_answers("ExpiredToken", "The security token is expired") as expired,
        sqs_that_answers("AccessDenied", "no policy allows it", "DeleteMessage") as denied,
    ):
        old.add_service("old")
        kafka = {"type": "kafka", "topics": ["t"], "group_id": "g"}
        sasl = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "username": "bridge",
            "password": "pa55-of-kafka",
        }
        oidc = {
            "type": "oidc",
            "refresh_token": "refresh-of-nobody",
            "token_endpoint": f"{world.oscar.url}/oidc/token",
            "client_id": "bridge",
        }
        sources = {
            "uploads": world.source(),
            "no-topic": world.source(topics=["no-such-topic"]),
            "conflict": {**kafka, "bootstrap_servers": conflict},
            "short": {**kafka, "bootstrap_servers": short},
            "refused": {**kafka, "bootstrap_servers": nobody},
            "wrong-password": {**kafka, "bootstrap_servers": refusing, **sasl},
            "no-queue": sqs(moto.url, "no-such-queue"),
            "wrong-region": sqs(moto.url, unique, "eu-central-1"),
            "hasty": sqs(moto.url, unique),
            "expired": sqs(expired, "q"),
            "denied": sqs(denied, "q"),
        }
        clusters = {
            "main": oscar(world.oscar.url),
            "refused": oscar(f"http://{nobody}"),
            "nameless": oscar("https://oscar.invalid"),
            "distrusted": oscar(f"https://127.0.0.1:{proxy.port}"),
            "plain": oscar(world.oscar.url.replace("http:", "https:")),
            "wrong-password": oscar(world.oscar.url, password="pa55-of-oscar"),
            "expired": {"endpoint": world.oscar.url, "auth": oidc},
            "old": oscar(old.url),
        }
        names = ("plants", "plant", "shared", "far", "twice")
        services = {name: {"cluster": "main"} for name in names} | {"old": {"cluster": "old"}}
        with socket.create_server(("127.0.0.1", 0)) as taken:
            daemon = world.daemon(
                {
                    "http": {"port": taken.getsockname()[1]},
                    "store": {"max_bytes": "900000GiB"},
                    "clusters": clusters,
                    "services": services,
                    "sources": sources,
                    "routes": [{"from": key, "to": "plants"} for key in sources],
                }
            )
            began = time.monotonic()
            done = await run(daemon, "check", "--json")
            took = time.monotonic() - began
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] is False
    shown = "\n".join("{severity} {about}: {message} → {remedy}".format(**one) for one in told["findings"])
    missed = [
        seed
        for seed in SEEDED
        if not any(
            (one["about"], one["severity"]) == seed[:2]
            and seed[2] in one["message"]
            and seed[3] in one["remedy"]
            for one in told["findings"]
        )
    ]
    assert not missed, f"{missed}\n{shown}"
    unexplained = [
        one for one in told["findings"] if one["severity"] in ("problem", "warning") and not one["remedy"]
    ]
    assert not [one for one in unexplained if one["about"] != "configuration"]
    about = {one["about"] for one in told["findings"] if one["severity"] in ("problem", "warning")}
    assert about.isdisjoint({"source uploads", "service plants", "cluster main"}), "and no false alarm"
    assert took < 60  # and not minutes, as names and addresses are given up elsewhere
    assert not [secret for secret in SECRETS if secret in done.stdout]
    assert world.oscar.ledger.requests == 0, "nothing was invoked"


async def test_a_bridge_that_hangs_everywhere_is_told_in_time(world: World) -> None:
    async with silent_server() as port:
        configuration = world.configuration(
            clusters={"main": oscar(f"http://127.0.0.1:{port}"), "two": oscar(f"https://127.0.0.1:{port}")},
            sources={
                "uploads": world.source(bootstrap_servers=f"127.0.0.1:{port}"),
                "bucket": sqs(f"http://127.0.0.1:{port}", "q"),
            },
            routes=[{"from": "uploads", "to": "plants"}, {"from": "bucket", "to": "plants"}],
        )
        daemon = world.daemon(configuration)
        began = time.monotonic()
        done = await run(daemon, "check")
        took = time.monotonic() - began
    assert done.returncode == 1
    for about in ("cluster main", "cluster two", "source uploads", "source bucket"):
        assert f"problem  {about}" in done.stdout
    assert took < 60  # and not minutes, as names and addresses are given up elsewhere


async def test_check_and_why_beside_a_running_daemon(world: World) -> None:
    daemon = world.daemon(
        world.configuration(
            routes=[
                {"from": "uploads", "when": "data.n >= 0", "to": "plants"},
                {"from": "uploads", "when": "data.n / 0 == 1", "to": "plants"},
            ]
        )
    )
    daemon.start()
    await world.produce_numbers(2)
    await world.all_jobs()
    await world.bed.leaves(0)
    done = await run(daemon, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"a bridge runs with this state_dir: process {daemon.pid}" in done.stdout
    assert "answered by the bridge that runs" in done.stdout
    assert "another member is connected" in done.stdout
    assert "one job an event" in done.stdout
    assert "0 problems" in done.stdout
    file = daemon.directory / "event.json"
    file.write_text('{"n": 0}')
    done = await run(
        daemon, "check", "--event", str(file), "--source", "uploads", "--id", world.ids[0], "--json"
    )
    (preview,) = json.loads(done.stdout)
    assert preview["services"][0]["job"] == world.job_of(0)
    assert preview["services"][0]["payload"] == '{"n":0}'
    assert preview["routes"][1]["reason"] == "route"
    done = await run(daemon, "why", world.ids[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plants: dead letter: number" in done.stdout
    assert await daemon.stop() == 0
    assert (await run(daemon, "why", world.ids[1])).stdout == done.stdout, "the same without the daemon"
    done = await run(daemon, "why", "none-such", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["events"] == []
    done = await run(daemon, "why", "x", "--source", "upload")
    assert done.returncode == 2
    assert "did you mean `uploads`" in done.stderr


async def test_why_finds_the_job_of_an_event(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await world.produce_numbers(3)
    await world.all_jobs()
    done = await run(daemon, "why", world.ids[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plants: succeeded" in done.stdout
    assert world.job_of(2) in done.stdout
