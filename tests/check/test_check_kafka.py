"""Mistakes seeded at a Kafka source, on live brokers."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.protocol.coordination import FindCoordinatorResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1

from bridge.core.ports import Finding, Patience
from bridge.sources.kafka import KIND
from bridge.sources.kafka.config import KafkaConfig
from bridge.testing import Proxy
from tests.check.findings import is_well, said
from tests.check.stubs import broker_that_answers, describing_broker, refusing_broker
from tests.servers.mock_kafka import MockKafka
from tests.servers.tansu import Tansu, free_port

PATIENCE = Patience(attempt=30, unsettled=630)


async def check(servers: str, topic: str, patience: Patience = PATIENCE, **more: Any) -> Sequence[Finding]:
    config = KafkaConfig.model_validate(
        {
            "type": "kafka",
            "bootstrap_servers": servers,
            "topics": [topic],
            "group_id": topic,
            "session_timeout": 6,
            **more,
        }
    )
    return await KIND.check(config, "uploads", patience)


async def test_a_new_group_is_told_where_it_begins(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique, 3)
    found = await check(tansu.bootstrap_servers, unique)
    assert is_well(found)
    said(found, "ok", f"topic {unique}", "3 partitions")
    said(found, "note", "no commit", "earliest", remedy="auto_offset_reset")
    latest = await check(tansu.bootstrap_servers, unique, auto_offset_reset="latest")
    said(latest, "note", "no commit", "are not read")
    assert await tansu.committed(unique, unique) == {}, "nothing was consumed"


async def test_a_missing_topic_is_not_made_by_asking(own_tansu: Tansu) -> None:
    await own_tansu.create_topic("uploads")
    for _ in range(2):
        found = await check(own_tansu.bootstrap_servers, "upload")
        said(found, "problem", "upload does not exist", "did you mean `uploads`", remedy="create the topic")
    found = await check(own_tansu.bootstrap_servers, "x", topics=[], topic_pattern="nothing-.*")
    said(found, "warning", "no topic matches", remedy="correct the pattern")


MEMBER = ("consumer-1-5e", "consumer-1", "/10.0.0.7", b"", b"")


async def test_a_group_of_another_protocol_is_a_problem() -> None:
    async with describing_broker("t", group=(0, "Stable", "consumer", "range", [MEMBER])) as servers:
        found = await check(servers, "t")
    said(found, "problem", "`range`", "could not join", remedy="group_id")
    async with describing_broker("t", group=(0, "Stable", "connect", "sessioned", [MEMBER])) as servers:
        found = await check(servers, "t")
    said(found, "problem", "one of type `connect`", remedy="group_id")
    async with describing_broker("t", group=(0, "Stable", "consumer", "roundrobin", [MEMBER])) as servers:
        found = await check(servers, "t")
    said(found, "note", "another member", "consumer-1/10.0.0.7")
    other = ("consumer-2-7f", "consumer-2", "/10.0.0.8", b"", b"")
    async with describing_broker(
        "t", group=(0, "Stable", "consumer", "roundrobin", [MEMBER, other])
    ) as servers:
        found = await check(servers, "t")
        said(found, "note", "another member")
        said(found, "note", "2 members are connected to group t: ", remedy="divide among them")
        said(
            found,
            "warning",
            "2 members, and 1 partitions to share",
            remedy="as many bridges as there are partitions",
        )
        found = await check(servers, "t", Patience(attempt=30, unsettled=630, alone=True))
    said(found, "problem", "2 members are connected to group t, ", remedy="TTL_JOB")


async def test_a_group_that_may_not_be_used_is_a_problem() -> None:
    async with describing_broker("t", group=(30, "", "", "", [])) as servers:
        said(await check(servers, "t"), "problem", "may not be used", remedy="grant the principal Read")


async def test_retention_and_session_are_held_against_the_brokers() -> None:
    async with describing_broker("t", retention_ms=60_000) as servers:
        found = await check(servers, "t", session_timeout=3)
        said(found, "warning", "topic t keeps records for 60 s", "10.5 min", remedy="retention.ms")
        said(found, "problem", "session_timeout", "= 6000", remedy="session_timeout")
    async with describing_broker("t", retention_ms=1_800_000) as servers:
        said(await check(servers, "t"), "warning", "keeps records for 30 min", "down for longer")
    async with describing_broker("t", retention_ms=86_400_000) as servers:
        assert is_well(await check(servers, "t"))


async def test_another_member_and_the_lag_are_told(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"1", b"2", b"3"])
    other = AIOKafkaConsumer(
        unique,
        bootstrap_servers=tansu.bootstrap_servers,
        group_id=unique,
        session_timeout_ms=2000,
        heartbeat_interval_ms=500,
    )
    await other.start()
    try:
        await other.commit({TopicPartition(unique, 0): 1})
        found = await check(tansu.bootstrap_servers, unique)
        said(found, "note", "another member is connected", remedy="another application")
        said(found, "ok", "records behind the newest")
    finally:
        await other.stop()


async def test_offsets_out_of_range_are_told_either_way(mock_kafka: MockKafka, unique: str) -> None:
    servers = mock_kafka.bootstrap_servers
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    try:
        await producer.send_and_wait(unique, b"1", partition=0)
        for _ in range(12):  # the mock cluster keeps a few MB of a partition
            await producer.send_and_wait(unique, b"x" * 900_000, partition=1)
    finally:
        await producer.stop()
    member = AIOKafkaConsumer(bootstrap_servers=servers, group_id=unique, enable_auto_commit=False)
    await member.start()
    try:
        places = {TopicPartition(unique, 0): 500, TopicPartition(unique, 1): 1}
        member.assign(list(places))
        await member.commit(places)
    finally:
        await member.stop()
    found = await check(servers, unique)
    said(found, "warning", "are gone", f"{unique}/1", remedy="retention")
    said(found, "warning", "beyond the end", f"{unique}/0", remedy="--reset-offsets")
    said(found, "note", "no commit", f"{unique}/2")


async def test_the_way_to_the_broker_is_told_apart(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    refused = f"127.0.0.1:{free_port()}"
    said(await check(refused, unique), "problem", "connection refused", remedy="bootstrap_servers")
    named = await check("kafka.invalid:9092", unique)
    said(named, "problem", "kafka.invalid can't be resolved", remedy="DNS")
    one_of_two = await check(f"{refused},{tansu.bootstrap_servers}", unique)
    said(one_of_two, "warning", "connection refused")
    said(one_of_two, "ok", f"topic {unique}")


async def test_addresses_that_brokers_advertise_and_nobody_reaches_are_told_and_no_acls(unique: str) -> None:
    dead = free_port()
    with Tansu(advertised_port=dead) as broker:
        found = await check(f"127.0.0.1:{broker.port}", unique)
    said(found, "problem", f"advertises 127.0.0.1:{dead}", "refused", remedy="advertised.listeners")
    assert "grant" not in str(found)
    async with broker_that_answers(
        MetadataResponse_v1(
            brokers=[(1, "kafka-1.invalid", 9092, None)],
            controller_id=1,
            topics=[(0, unique, False, [(0, 0, 1, [1], [1])])],
        )
    ) as servers:
        found = await check(servers, unique)
    said(found, "problem", "broker 1 advertises kafka-1.invalid:9092", "can't be resolved")
    assert "grant" not in str(found)


async def test_a_coordinator_that_is_out_is_told_and_no_acls(unique: str) -> None:
    def layout(port: int) -> MetadataResponse_v1:
        return MetadataResponse_v1(
            brokers=[(1, "127.0.0.1", port, None)],
            controller_id=1,
            topics=[(0, unique, False, [(0, 0, 1, [1], [1])])],
        )

    out = FindCoordinatorResponse_v0(error_code=15, coordinator_id=-1, host="", port=-1)
    async with broker_that_answers(layout, out) as servers:
        found = await check(servers, unique)
    said(found, "problem", f"who coordinates group {unique}", "NotAvailable", remedy="__consumer_offsets")
    said(found, "ok", f"topic {unique}")
    assert "grant" not in str(found)
    denied = FindCoordinatorResponse_v0(error_code=30, coordinator_id=-1, host="", port=-1)
    async with broker_that_answers(layout, denied) as servers:
        said(await check(servers, unique), "problem", "may not be used", remedy="grant the principal Read")


async def test_a_record_that_can_not_be_read_next_is_told_with_its_place(unique: str) -> None:
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, 2)
            await broker.produce(unique, [b"needle"], partition=1)
            assert is_well(await check(broker.bootstrap_servers, unique))
            proxy.garbled = (b"needle", b"noodle")
            found = await check(broker.bootstrap_servers, unique)
    said(
        found, "problem", f"{unique}/1 can't be read at offset 0", "checksum", remedy="docs/configuration.md"
    )


async def test_a_pattern_is_held_against_the_topics_as_it_is_used(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(f"{unique}-a")
    await tansu.create_topic(f"{unique}-a-more")
    found = await check(
        tansu.bootstrap_servers, unique, topics=[], topic_pattern=f"(?i:{unique.upper()})-a|none"
    )
    said(found, "ok", f"topic {unique}-a:")
    assert f"{unique}-a-more" not in str(found)


async def test_who_believes_anybody_is_told(unique: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    found = await check(nobody, unique, security_protocol="SSL", tls={"verify": False})
    said(found, "warning", "`tls.verify: false`", remedy="sources.uploads.tls.ca_file")


async def test_credentials_are_told_apart(tansu: Tansu, unique: str) -> None:
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "bridge"}
    async with refusing_broker() as servers:
        found = await check(servers, unique, **sasl, password="pa55-of-kafka")
    said(found, "problem", "refused the credentials", "Invalid username", remedy="username")
    said(found, "warning", "clear text", remedy="SASL_SSL")
    assert "pa55-of-kafka" not in str(found)
    found = await check(tansu.bootstrap_servers, unique, **sasl, password="pa55-of-kafka")
    said(found, "problem", "does not take sasl_mechanism PLAIN", remedy="sasl_mechanism")


async def test_an_unknown_authority_is_told_plainly(unique: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Proxy(0, tls=server) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            found = await check(broker.bootstrap_servers, unique, security_protocol="SSL")
            said(found, "problem", "authority unknown here", remedy="sources.uploads.tls.ca_file")
            trusting = {"security_protocol": "SSL", "tls": {"ca_file": str(tmp_path / "ca.pem")}}
            found = await check(broker.bootstrap_servers, unique, **trusting)
            said(found, "problem", f"topic {unique} does not exist")
            plain = await check(broker.bootstrap_servers, unique)
            said(plain, "problem", "no answer as Kafka's", remedy="security_protocol")
