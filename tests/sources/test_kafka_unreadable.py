"""What can't be read stops nothing beside it, is never skipped, and is told until it is over."""

from __future__ import annotations

import struct

import pytest
from aiokafka import TopicPartition
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core import steady
from bridge.core.delivery import Outcome
from bridge.sources.kafka import unreadable
from bridge.sources.kafka.batches import UnreadableError, first_batch
from bridge.testing import Proxy, opened, settle, until
from tests.servers.mock_kafka import MockKafka
from tests.servers.tansu import Tansu, produce_batch
from tests.sources.kafka_batches import TIMESTAMP, batch, with_a_header_name_that_is_no_text
from tests.sources.reading import source


async def test_a_damaged_record_holds_its_partition_alone_and_is_told_until_it_is_mended(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unreadable, "RETRY_SECONDS", 0.1)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, partitions=2)
            await broker.produce(unique, [b"good"])
            await broker.produce(unique, [b"needle"])
            await broker.produce(unique, [b"behind"])
            await broker.produce(unique, [b"other"], partition=1)
            proxy.garbled = (b"needle", b"noodle")
            async with opened(source(broker, unique)) as hands:
                settle(await hands.take(2))
                assert sorted(hands.data) == [b"good", b"other"]
                await until(hands.source.problems)
                for number in range(5):
                    await broker.produce(unique, [b"%d" % number], partition=1)
                    settle(await hands.take(1))
                    [told] = hands.source.problems()
                    assert f"{unique}/0 is held at offset 1: its checksum (CRC) is wrong" in told
                assert hands.data[2:] == [b"%d" % number for number in range(5)]
                proxy.garbled = None
                settle(await hands.take(2))
                assert hands.data[-2:] == [b"needle", b"behind"]
                assert "over for" in hands.source.problems()[0]
                monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)
                assert not hands.source.problems()
            assert await broker.committed(unique, unique) == {0: 3, 1: 6}


async def test_a_held_partition_stays_told_when_the_source_is_opened_again_until_it_is_passed(
    unique: str,
) -> None:
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            await broker.prepare_group(unique, unique)
            await broker.produce(unique, [b"needle"])
            proxy.garbled = (b"needle", b"noodle")
            held = source(broker, unique)
            async with opened(held):
                await until(held.problems)
            assert "is held at offset 0" in held.problems()[0]
            async with opened(held):
                assert "is held at offset 0" in held.problems()[0]
            await broker.produce(unique, [b"behind"])
            await broker.commit(unique, {TopicPartition(unique, 0): 1})  # as `--reset-offsets` does
            async with opened(held) as hands:
                await hands.take(1)
                assert hands.data == [b"behind"]
                assert "over for" in held.problems()[0]


async def test_a_header_whose_name_is_no_text_is_read_with_its_neighbours(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"before"])
    await tansu.produce_batch(unique, with_a_header_name_that_is_no_text(b"1", b"2", b"3"))
    await tansu.produce(unique, [b"after"])
    async with opened(source(tansu, unique), limit=2) as hands:
        while len(hands.seen) < 5:
            settle(await hands.take(1))
        assert hands.data == [b"before", b"1", b"2", b"3", b"after"]
        event = hands.seen[2].event
        assert event.id == f"{unique}/0/2@{TIMESTAMP + 1}"
        assert event.attributes["header.n�m�"] == "v"
        assert not hands.source.problems()
    assert await tansu.committed(unique, unique) == {0: 5}


async def test_a_record_that_makes_no_sense_is_a_dead_letter_as_received(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    # The number of headers, 1 (zigzag 2), of one of three records says 32.
    odd = batch(b"1", b"here", b"3", headers=[("h", b"")], replacing=(b"here\x02", b"here\x40"))
    await tansu.produce_batch(unique, odd)
    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(3)
        assert [delivery.fault is None for delivery in taken] == [True, False, True]
        bad = taken[1]
        assert "can't be read" in (bad.fault or "")
        assert b"here\x40" in bad.event.data
        assert bad.event.attributes == {"topic": unique, "partition": "0", "offset": "1"}
        settle(taken, Outcome.DEAD_LETTERED)
    assert await tansu.committed(unique, unique) == {0: 3}


async def test_what_is_no_record_of_ours_before_one_that_makes_no_sense_is_passed_over(
    mock_kafka: MockKafka, unique: str
) -> None:
    """As marks of a transaction's end are, and the records of one that was aborted."""
    commit, unknown = struct.pack(">hh", 0, 1), b"k"
    marks = [batch(b"mark", key=key, attributes=0x20) for key in (commit, unknown, commit)]
    odd = batch(b"odd", replacing=(b"odd\x00", b"odd\x40"))
    for made in (batch(b"before"), *marks, odd, batch(b"after")):
        await produce_batch(mock_kafka.bootstrap_servers, unique, made)
    async with opened(source(mock_kafka, unique, session_timeout=6)) as hands:
        settle(await hands.take(3))
        assert [delivery.event.attributes["offset"] for delivery in hands.seen] == ["0", "4", "5"]
        assert [delivery.fault is None for delivery in hands.seen] == [True, False, True]


async def test_a_batch_that_comes_cut_holds_its_partition_alone_and_is_not_skipped(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a record longer than a fetch from a broker before Kafka 0.10.1."""
    monkeypatch.setattr(unreadable, "RETRY_SECONDS", 0.1)
    made = batch(b"long")
    length = len(made) - 12
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, partitions=2)
            await broker.produce(unique, [b"good"])
            await broker.produce_batch(unique, made)
            proxy.garbled = (struct.pack(">qi", 1, length), struct.pack(">qi", 1, length + 1000))
            async with opened(source(broker, unique)) as hands:
                settle(await hands.take(1))
                await until(
                    lambda: f"{unique}/0 is held at offset 1: a batch of" in str(hands.source.problems())
                )
                await broker.produce(unique, [b"other"], partition=1)
                settle(await hands.take(1))
                proxy.garbled = None
                settle(await hands.take(1))
                assert hands.data == [b"good", b"other", b"long"]


async def test_a_topic_that_may_not_be_read_holds_up_no_other(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unreadable, "RETRY_SECONDS", 0.1)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            both = (unique, f"{unique}-denied")
            for topic, count in zip(both, (5, 9), strict=True):
                await broker.create_topic(topic)
                await broker.produce(topic, [topic.encode()] * count)
            denied = 29  # TOPIC_AUTHORIZATION_FAILED
            proxy.garbled = (struct.pack(">ihq", 0, 0, 9), struct.pack(">ihq", 0, denied, 9))
            async with opened(source(broker, unique, topics=both)) as hands:
                settle(await hands.take(5))
                told = f"{unique}-denied/0 is held at offset 0: [Error 29] TopicAuthorizationFailed"
                await until(lambda: told in str(hands.source.problems()))
                await broker.produce(unique, [b"on"])
                settle(await hands.take(1))
                proxy.garbled = None
                settle(await hands.take(9))


def legacy(magic: int, *values: bytes) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, 0, 10**6)
    for number, value in enumerate(values):
        builder.append(number, TIMESTAMP if magic else None, None, value)
    return bytes(builder.build())


async def test_records_of_the_old_formats_are_read(mock_kafka: MockKafka, unique: str) -> None:
    await produce_batch(mock_kafka.bootstrap_servers, unique, legacy(0, b"0", b"1"))
    await produce_batch(mock_kafka.bootstrap_servers, unique, legacy(1, b"2"))
    async with opened(source(mock_kafka, unique, session_timeout=6)) as hands:
        oldest, _, old = [delivery.event for delivery in await hands.take(3)]
        assert hands.data == [b"0", b"1", b"2"]
        assert (oldest.id, oldest.time) == (f"{unique}/0/0@-1", None)
        assert old.id == f"{unique}/0/2@{TIMESTAMP}"
        assert old.time is not None


def test_a_batch_is_taken_apart_as_aiokafka_reads_it() -> None:
    for compression in range(5):
        made = batch(b"1", None, b"3", headers=[("a", b"\xff"), ("b", None)], compression=compression)
        taken = first_batch(made + b"more", "t", 7, 1)
        assert taken.next_offset == 3
        assert [(one.offset, one.timestamp, one.key, one.value) for one in taken.records] == [
            (1, TIMESTAMP + 1, b"k1", None),
            (2, TIMESTAMP + 2, b"k2", b"3"),
        ]
        assert taken.records[0].headers == (("a", b"\xff"), ("b", None))


def rechecked(made: bytes) -> bytes:
    return made[:17] + struct.pack(">I", calc_crc32c(made[21:])) + made[21:]


GOOD = batch(b"value" * 9)
NEVER = {
    "its checksum": GOOD[:-1] + b"!",
    "is cut": GOOD[:-1],
    "compression 6 is unknown": rechecked(GOOD[:22] + b"\x06" + GOOD[23:]),
    "compression can't be undone": rechecked(GOOD[:22] + b"\x04" + GOOD[23:]),
    "has no end": rechecked(GOOD[:61] + b"\xff" + GOOD[62:]),
    "ends with offset 0": batch(b"early"),
    r"damaged, or compressed .* \(v1\)": legacy(1, b"v"),
}


@pytest.mark.parametrize("reason", NEVER)
def test_a_batch_that_can_not_be_relied_on_says_why(reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        first_batch(NEVER[reason], "t", 0, 1 if "early" in str(NEVER[reason]) else 0)


@settings(deadline=None)
@given(st.binary(max_size=120), st.integers(0, 100))
def test_no_damage_behind_a_right_checksum_escapes(noise: bytes, at: int) -> None:
    made = batch(b"1", b"2")
    damaged = rechecked(made[: 61 + at % 20] + noise + made[61 + at :])
    damaged = damaged[:8] + struct.pack(">i", len(damaged) - 12) + damaged[12:]
    try:
        taken = first_batch(damaged, "t", 0, 0)
    except UnreadableError:
        return
    assert taken.next_offset == 2
