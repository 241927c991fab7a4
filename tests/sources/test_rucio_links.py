"""Brokers of Rucio that fall silent, go, refuse or come by several addresses; on real ones."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from bridge.core import steady
from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.sources.broker import reader
from bridge.sources.broker.link import LinkLost, resolve
from bridge.sources.broker.message import Message
from bridge.sources.rucio import over_amqp, over_stomp
from bridge.sources.rucio.config import RucioConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import Proxy, opened, settle, until
from tests.servers import hermes
from tests.servers import rabbitmq as rabbit
from tests.servers.activemq import ActiveMQ
from tests.servers.black_hole import black_hole
from tests.servers.certificates import Certificates
from tests.servers.rabbitmq import RabbitMQ
from tests.sources.rucio import behind, source
from tests.support.beds import RUCIO_KINDS, RucioBed, number

pytestmark = pytest.mark.usefixtures("told_no_longer")


async def test_a_broker_that_falls_silent_is_left_within_two_heartbeats(bed: RucioBed) -> None:
    await bed.put(3)
    async with opened(bed.source(heartbeat=2)) as hands:
        taken = await hands.take(3)
        bed.proxy.listen()
        await asyncio.sleep(4.5)  # heartbeats keep it
        while any(delivery.outcome for delivery in taken):
            assert bed.proxy.longest_silence > 3.5  # a broker of a busy machine may say nothing for so long
            taken = await hands.take(3, timeout=20)
            bed.proxy.listen()
            await asyncio.sleep(4.5)
        assert not hands.source.problems()
        bed.proxy.stall()
        stalled = time.monotonic()
        await until(lambda: hands.source.problems(), seconds=30)
        assert time.monotonic() - stalled < 20  # and not the two minutes of the usual heartbeat
        assert "nothing heard" in hands.source.problems()[0]
        assert [delivery.outcome for delivery in taken] == [Outcome.RELEASED] * 3
        bed.proxy.stall(False)
        bed.proxy.cut()  # what was held back is of connections that nobody has any more
        settle(await hands.take(3, timeout=20))
        assert not hands.source.problems()
    await bed.leaves(0)


async def test_a_broker_that_accepts_and_says_nothing_is_lost_within_two_heartbeats(bed: RucioBed) -> None:
    bed.proxy.stall()
    begun = time.monotonic()
    with pytest.raises(SourceLost, match="no answer in time"):
        async with opened(bed.source(heartbeat=1)):
            pass
    assert time.monotonic() - begun < 20


async def test_an_answer_after_a_cut_is_none_and_the_message_comes_again(bed: RucioBed) -> None:
    await bed.put(2)
    async with opened(bed.source()) as hands:
        before = await hands.take(2)
        bed.proxy.cut()
        await until(lambda: all(delivery.outcome for delivery in before))
        settle(before)
        after = await hands.take(2)
        assert {each.event.id for each in after} == {each.event.id for each in before}
        settle(after)
    await bed.leaves(0)


async def test_a_wrong_password_is_told_without_it(bed: RucioBed) -> None:
    with pytest.raises(SourceLost) as raised:
        async with opened(bed.source(password="not-it-at-all")):
            pass
    assert str(bed.proxy.port) in str(raised.value)
    assert "not-it-at-all" not in str(raised.value)


async def test_of_several_addresses_each_is_read_and_one_that_is_down_is_told(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two doors to one broker, at two addresses behind one name."""
    behind(monkeypatch, "mq.test", "127.0.0.1", "127.0.0.2")
    metrics = Metrics()
    keys = {**bed.settings(), "brokers": f"mq.test:{bed.proxy.port}", "max_in_flight": 8}
    async with Proxy(bed.proxy.target_port, host="127.0.0.2", port=bed.proxy.port) as second:
        second.refuse()
        async with opened(source(metrics, **keys)) as hands:
            await until(lambda: hands.source.problems())
            (problem,) = hands.source.problems()
            assert problem.startswith(f"mq.test:{second.port} (127.0.0.2): ")
            await bed.put(4)
            settle(await hands.take(4))
            second.refuse(False)
            await until(lambda: not hands.source.problems(), seconds=15)
            bed.proxy.refuse()
            await until(lambda: hands.source.problems())
            await bed.put(4, first=4)
            settle(await hands.take(4))
            second.refuse()
            up = ("bridge_source_up", {"source": "closed"})
            losses = ("bridge_source_losses_total", {"source": "closed"})
            assert metrics.registry.get_sample_value(*losses) == 0, "one of two was read all the time"
            await until(lambda: metrics.registry.get_sample_value(*up) == 0)
            assert metrics.registry.get_sample_value(*losses) == 1
            assert len(hands.source.problems()) == 2
            second.refuse(False)
            await until(lambda: metrics.registry.get_sample_value(*up) == 1, seconds=15)
            settle(await hands.take(4))  # the last answers were lost with the link they had to go by
    await bed.leaves(0)


async def test_a_link_that_comes_and_goes_is_told_until_it_has_held_for_half_a_minute(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "HELD_SECONDS", 30.0)
    async with opened(bed.source()) as hands:
        assert not hands.source.problems()
        for _ in range(2):
            links = bed.proxy.accepted
            bed.proxy.cut()
            await until(lambda: bed.proxy.accepted > links and "over for" in f"{hands.source.problems()}")  # noqa: B023 - now
        await bed.put(1)
        settle(await hands.take(1))
        assert "over for" in hands.source.problems()[0]
        held = time.monotonic() + 31
        monkeypatch.setattr(steady, "monotonic", lambda: held)
        assert not hands.source.problems()


async def test_an_address_that_swallows_everything_delays_no_other(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(monkeypatch, "mq.test", "127.0.0.2", "127.0.0.1")
    keys = {**bed.settings(), "brokers": f"mq.test:{bed.proxy.port}"}
    with black_hole("127.0.0.2", bed.proxy.port):
        await bed.put(3)
        async with opened(source(**{**keys, "heartbeat": 10})) as hands:  # connecting has 20 s
            settle(await hands.take(3))
        async with opened(source(**{**keys, "heartbeat": 1})) as hands:
            await until(lambda: hands.source.problems())
            assert "(127.0.0.2): no answer in time" in hands.source.problems()[0]
    await bed.leaves(0)


async def test_a_name_stands_for_its_addresses_of_ipv4_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    behind(monkeypatch, "mq.test", "::1", "127.0.0.1", "127.0.0.2")
    assert [str(each) for each in await resolve("mq.test:1")] == [
        "mq.test:1 (127.0.0.1)",
        "mq.test:1 (127.0.0.2)",
    ]
    behind(monkeypatch, "six.test", "::1")
    assert [str(each) for each in await resolve("six.test:1")] == ["six.test:1 ([::1])"]
    assert [str(each) for each in await resolve("[::1]:1")] == ["[::1]:1"]
    with pytest.raises(LinkLost, match=r"no-such\.invalid can't be resolved"):
        await resolve("no-such.invalid:1")


async def test_a_broker_with_an_address_of_each_family_is_reached_by_the_one_that_answers(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bed.put(1)
    port = bed.proxy.port
    behind(monkeypatch, "mq.test", "::1", "127.0.0.2")
    async with Proxy(bed.proxy.target_port, host="::1", port=port):
        with black_hole("127.0.0.2", port):
            async with opened(source(**{**bed.settings(), "brokers": f"mq.test:{port}"})) as hands:
                settle(await hands.take(1))


async def test_a_defect_is_told_and_not_waited_for(bed: RucioBed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("bridge.sources.rucio.source.read", broken)
    await bed.put(1)
    with pytest.raises(SourceLost, match="a defect"):
        async with opened(bed.source()) as hands:
            await hands.take(1)


async def test_an_answer_that_meets_a_closed_connection_is_a_lost_link_and_no_defect(bed: RucioBed) -> None:
    """Whichever notices first: who waits for the link's end, or who has something to say on it."""
    config = RucioConfig.model_validate(bed.settings())
    protocol = over_amqp if config.protocol == "amqp" else over_stomp
    open_link = protocol.opener(config)
    (place,) = await resolve(config.brokers[0])
    await bed.put(1)
    got: list[Message] = []
    async with open_link(place, 1, got.append) as link:
        waiting = asyncio.create_task(link.lost())
        await until(lambda: got)
        bed.proxy.cut()
        with pytest.raises(LinkLost):
            await waiting
        with suppress(LinkLost):
            link.answer([got[0].tag])
        with suppress(LinkLost):
            await link.waiting()
    await bed.leaves(1)


async def test_cuts_at_any_moment_leave_no_defect_and_no_complaint(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "LONGEST_PAUSE", 0.06)
    dice = random.Random(5)
    gc.collect()  # what the tests before have left is not told of this one
    caplog.clear()
    await bed.put(150)
    seen: set[int] = set()
    with structlog.testing.capture_logs() as lines:
        async with opened(bed.source(max_in_flight=10), limit=10) as hands:
            async with asyncio.timeout(40):
                while len(seen) < 150:
                    batch = await hands.next()
                    settle(batch)
                    seen |= {number(delivery.event) for delivery in batch}
                    await asyncio.sleep(dice.choice((0, 0.01, 0.02)))  # as often before as after an answer
                    if dice.random() < 0.3:
                        bed.proxy.cut()
        gc.collect()  # a task's exception that nobody has asked for is told now
    assert {line["log_level"] for line in lines} <= {"info", "warning", "debug"}
    assert [
        record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"
    ] == []
    assert bed.proxy.accepted > 5


@pytest.mark.parametrize("kind", RUCIO_KINDS)
@pytest.mark.parametrize("said", [1, 2, 3])
async def test_a_broker_that_falls_silent_within_tls_is_left_in_time_and_when_stopping_too(
    kind: str,
    said: int,
    rabbitmq: RabbitMQ,
    activemq: ActiveMQ,
    certificates: Certificates,
    unique: str,
) -> None:
    """After so many of our packets: in the handshake, or when it is over."""
    port = {
        "amqp": rabbitmq.tls_port,
        "stomp-rabbitmq": rabbitmq.stomp_tls_port,
        "stomp-activemq": activemq.stomp_tls_port,
    }[kind]
    async with Proxy(port) as proxy:
        packets: list[bytes] = []

        def asked(data: bytes) -> bool:
            packets.append(data)
            if len(packets) >= said:
                proxy.stall()
            return True

        proxy.asked = asked
        keys: dict[str, Any] = {
            "protocol": kind.partition("-")[0],
            "brokers": f"localhost:{proxy.port}",
            **({"queue": unique} if kind == "amqp" else {"destination": f"/queue/{unique}"}),
            "tls": {
                "ca_file": certificates.authority,
                "cert_file": certificates.client,
                "key_file": certificates.client_key,
            },
        }
        begun = time.monotonic()
        with pytest.raises(SourceLost, match="no answer in time"):
            async with opened(source(**keys, heartbeat=1)):
                pass
        assert time.monotonic() - begun < 20

        proxy.stall(False)
        proxy.cut()
        packets.clear()

        async def never() -> None:
            async with opened(source(**keys, heartbeat=60)):
                raise AssertionError("opened")

        opening = asyncio.create_task(never())
        await until(lambda: len(packets) >= said)
        begun = time.monotonic()
        opening.cancel()
        await asyncio.wait([opening])
        assert time.monotonic() - begun < 10


async def test_stopping_while_the_broker_is_silent_ends_in_time(bed: RucioBed) -> None:
    await bed.put(5)
    async with opened(bed.source(heartbeat=60)) as hands:
        taken = await hands.take(5)
        settle(taken[:2])
        bed.proxy.stall()
        begun = time.monotonic()
    assert time.monotonic() - begun < 20
    assert [delivery.outcome for delivery in taken[2:]] == [Outcome.RELEASED] * 3


async def test_a_password_that_is_renewed_is_taken_up_at_the_next_connecting(
    bed: RucioBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "LONGEST_PAUSE", 0.2)
    file = tmp_path / "password"
    file.write_text(f"{rabbit.PASSWORD}\n")
    with structlog.testing.capture_logs() as lines:
        async with opened(bed.source(password=None, password_file=str(file))) as hands:
            for wrong, reason in (
                ("swordfish-1", "(?i)refused|password is invalid"),
                (None, "can't be read"),
                ("", "is empty"),
            ):
                if wrong is None:
                    file.unlink()
                else:
                    file.write_text(wrong)
                bed.proxy.cut()
                # Not the cut alone, which is told before.
                await until(lambda: re.search(reason, f"{hands.source.problems()}"))  # noqa: B023 - now
                file.write_text(rabbit.PASSWORD)
                await until(lambda: not hands.source.problems(), seconds=20)
            await bed.put(1)
            settle(await hands.take(1))
    told = f"{lines} {caplog.text}"
    for secret in ("swordfish-1", rabbit.PASSWORD, quote(rabbit.PASSWORD, safe="")):
        assert secret not in told


async def test_addresses_that_come_and_go_are_followed(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "RESOLVE_SECONDS", 0.1)
    behind(monkeypatch, "mq.test", "127.0.0.1")
    keys = {**bed.settings(), "brokers": f"mq.test:{bed.proxy.port}"}
    async with (
        Proxy(bed.proxy.target_port, host="127.0.0.2", port=bed.proxy.port) as second,
        opened(source(**keys)) as hands,
    ):
        await bed.put(2)
        settle(await hands.take(2))
        behind(monkeypatch, "mq.test", "127.0.0.2")
        await until(lambda: second.accepted)
        bed.proxy.refuse()
        await until(lambda: [each for each in hands.source.problems() if "127.0.0.1" in each])
        await until(lambda: not hands.source.problems())  # nobody looks for it any more
        await bed.put(2, first=2)
        settle(await hands.take(2))
        behind(monkeypatch, "mq.test")  # the DNS knows nothing of it now: what is read is kept
        await until(lambda: hands.source.problems())
        await bed.put(2, first=4)
        settle(await hands.take(2))
        bed.proxy.refuse(False)
        behind(monkeypatch, "mq.test", "127.0.0.1", "127.0.0.2")
        accepted = bed.proxy.accepted
        # The pause before the next look-up, and the one before the next attempt, are 10 s at most.
        await until(lambda: bed.proxy.accepted > accepted and not hands.source.problems(), seconds=30)


async def test_bytes_in_hand_are_bounded_whatever_a_message_has(bed: RucioBed) -> None:
    """Brokers count messages: the prefetch shrinks to what is seen of their sizes."""
    before = deliveries()
    size, most = 50_000, 400_000
    await bed.send(*hermes.numbered(40, blob="x" * size))
    done: set[int] = set()
    async with opened(bed.source(max_in_flight=40, max_in_flight_bytes=most), limit=1) as hands:
        async with asyncio.timeout(30):
            while len(done) < 40:
                (delivery,) = await hands.next()
                if len(done) % 10 == 0:
                    await asyncio.sleep(0.2)  # whatever the broker will send is here
                    open_ones = [each for each in deliveries(before) if each.outcome is None]
                    assert sum(len(each.event.data) for each in open_ones) < most + 2 * size
                if delivery.outcome is None:
                    settle([delivery])
                    done.add(number(delivery.event))
    await bed.leaves(0)


def deliveries(before: Sequence[Delivery] = ()) -> list[Delivery]:
    """Give all there are in this process, but those of the tests before this one."""
    known = set(map(id, before))
    return [each for each in gc.get_objects() if type(each) is Delivery and id(each) not in known]


async def test_what_a_flapping_link_brings_again_and_again_is_not_kept(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another link's events have all the slots."""
    before = deliveries()
    monkeypatch.setattr(reader, "LONGEST_PAUSE", 0.06)
    behind(monkeypatch, "mq.test", "127.0.0.1", "127.0.0.2")
    keys = {**bed.settings(), "brokers": f"mq.test:{bed.proxy.port}", "max_in_flight": 20}
    async with Proxy(bed.proxy.target_port, host="127.0.0.2", port=bed.proxy.port) as second:
        second.refuse()
        async with opened(source(**keys), limit=1) as hands:
            await bed.put(20)
            await hands.take(1)
            second.refuse(False)
            for _ in range(8):
                links = second.accepted
                await until(lambda: second.accepted > links and not hands.source.problems())  # noqa: B023 - now
                await hands.takes_nothing(0.1)
                second.cut()
            gc.collect()
            assert len(deliveries(before)) <= 25
