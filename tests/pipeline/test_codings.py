"""`decode` and `encode` of a route: the body that `when` sees, the one that the service gets, and no body."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import random
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.pipeline import router as router_module
from bridge.pipeline.codings import MOST, Coding, Undecodable, decode, encode
from bridge.pipeline.intake import Intake
from bridge.telemetry.metrics import Metrics
from tests.pipeline.routing import House, route
from tests.pipeline.scripted import ACCEPTED, event

ABC = gzip.compress(b"abc", mtime=0)
CODINGS = st.lists(st.sampled_from(["base64", "gzip"]), max_size=3)


def done(work: Generator[None, None, bytes]) -> tuple[bytes, int]:
    """The body, and in how many pieces it was made."""
    for pieces in itertools.count(1):
        try:
            next(work)
        except StopIteration as end:
            return end.value, pieces
    raise AssertionError


def opened(body: bytes, *codings: Coding) -> bytes:
    return done(decode(body, codings))[0]


@given(st.binary(max_size=300), CODINGS)
def test_what_is_encoded_comes_back_by_decoding_in_the_reverse_order(
    body: bytes, codings: list[Coding]
) -> None:
    coded, _ = done(encode(body, codings))
    assert done(encode(body, codings))[0] == coded, "the same each time: a redelivery is the same event"
    assert opened(coded, *reversed(codings)) == body


@given(st.binary(max_size=200), st.sampled_from(["base64", "gzip"]))
def test_any_bytes_are_opened_or_refused_with_a_reason(body: bytes, coding: Coding) -> None:
    refusal = None
    try:
        opened(body, coding)
    except Undecodable as told:
        refusal = str(told)
    assert refusal is None or refusal.startswith(f"not {coding}: ")


@given(st.lists(st.integers(0, 3 * 2**16), min_size=1, max_size=4), st.integers(0, 2**32))
def test_gzip_of_several_members_of_any_length_is_opened(sizes: list[int], seed: int) -> None:
    draw = random.Random(seed)
    parts = [draw.randbytes(size) if size % 2 else bytes(size) for size in sizes]
    assert opened(b"".join(gzip.compress(part, 1) for part in parts), "gzip") == b"".join(parts)


def test_base64_in_lines_is_opened_as_it_is_written_by_default() -> None:
    body = bytes(range(256)) * 300
    assert opened(base64.encodebytes(body), "base64") == body
    assert opened(base64.b64encode(body) + b"\r\n", "base64") == body


@pytest.mark.parametrize(
    ("coding", "body", "reason"),
    [
        ("gzip", b'{"a": 1}', "not gzip: incorrect header check"),
        ("gzip", ABC[:-1], "not gzip: it ends too early"),
        ("gzip", ABC[:-8] + bytes(8), "not gzip: incorrect data check"),
        ("gzip", ABC + b"more", "not gzip: incorrect header check"),
        ("gzip", gzip.compress(bytes(MOST + 1), mtime=0), f"gzip that opens to more than {MOST} bytes"),
        ("gzip", bytes(MOST + 1), f"{MOST + 1} bytes are too many for `decode: gzip`: {MOST} at most"),
        ("base64", b'{"a": 1}', "not base64: only base64 data is allowed"),
        ("base64", b"YQ==YQ==", "not base64: it goes on after its padding"),
        ("base64", b"YQ", "not base64: incorrect padding"),
    ],
)
def test_what_is_not_what_the_route_says_is_told(coding: Coding, body: bytes, reason: str) -> None:
    with pytest.raises(Undecodable) as refused:
        opened(body, coding)
    assert str(refused.value) == reason


def test_no_body_at_all_stays_none() -> None:
    assert opened(b"", "gzip", "base64") == b""
    assert done(encode(b"", ["gzip", "base64"]))[0] == b""


def test_a_long_body_is_worked_on_in_pieces() -> None:
    """So that none takes long; how long is the machine's."""
    body = bytes(MOST)
    coded, pieces = done(encode(body, ["gzip"]))
    assert pieces > 30
    assert done(decode(coded, ["gzip"]))[1] > 15
    assert done(decode(b"A" * MOST, ["base64"]))[1] > 15
    members = gzip.compress(b"") * 1000
    assert done(decode(members, ["gzip"]))[1] > 1000, "however many files there are in one"


class Taken:
    """Lanes behind routes, and the bodies that they got."""

    def __init__(self, *routes: Any, **services: Any) -> None:
        self.bodies: list[bytes] = []
        self.house = House(*routes, **(services or {"plants": ACCEPTED}))
        for destination in self.house.destinations.values():
            prepare = destination.prepare
            destination.prepare = lambda given, prepare=prepare: (  # type: ignore[method-assign]
                self.bodies.append(given.data),
                prepare(given),
            )[1]

    async def send(self, body: bytes, **others: Any) -> Outcome:
        return await self.house.send(event("a", body, **others))


def packed(body: bytes) -> bytes:
    return base64.b64encode(gzip.compress(body))


async def test_when_and_to_see_the_decoded_body_and_the_service_gets_it() -> None:
    wanted = route("data.to", "data.size > 1", ["plants"], decode=["base64", "gzip"])
    taken = Taken(wanted)
    assert await taken.send(packed(b'{"size": 2, "to": "plants"}')) is Outcome.ACCEPTED
    assert await taken.send(packed(b'{"size": 1, "to": "plants"}')) is Outcome.FILTERED
    assert taken.bodies == [b'{"size": 2, "to": "plants"}']


async def test_each_route_decodes_for_itself() -> None:
    """One service gets it as it came, one opened, one encoded anew; the identity is the event's own."""
    services = dict.fromkeys(("plants", "flood", "fire"), ACCEPTED)
    taken = Taken(
        route("plants"),
        route("flood", decode="base64"),
        route("fire", "has(data.a)", decode=["base64", "gzip"], encode="base64"),
        **services,
    )
    body = packed(b'{"a": 1}')
    assert await taken.send(body) is Outcome.ACCEPTED
    assert sorted(taken.bodies) == sorted([body, base64.b64decode(body), base64.b64encode(b'{"a": 1}')])
    assert [destination.ids for destination in taken.house.destinations.values()] == [["a"]] * 3


async def test_of_two_routes_to_one_service_the_first_says_how() -> None:
    taken = Taken(route(decode="base64"), route())
    assert await taken.send(b"YQ==") is Outcome.ACCEPTED
    assert taken.bodies == [b"a"]


async def test_what_can_not_be_decoded_chooses_no_service() -> None:
    taken = Taken(route("data.to", allow=["plants"], decode="gzip"))
    for body in (b'{"to": "plants"}', b'{"to": "other"}', b"{}"):
        assert await taken.send(body) is Outcome.DEAD_LETTERED
    assert [letter.cause for letter in taken.house.dead.letters] == ["undecodable"] * 3


async def test_what_can_not_be_decoded_is_a_dead_letter_that_a_replay_takes_round_again() -> None:
    taken = Taken(route(when="data.size > 1", decode="gzip"), route("flood"), plants=ACCEPTED, flood=ACCEPTED)
    assert await taken.send(b'{"size": 2}') is Outcome.DEAD_LETTERED
    (letter,) = taken.house.dead.letters
    assert (letter.service, letter.cause, letter.detail) == (
        "",
        "undecodable",
        "not gzip: incorrect header check",
    )
    assert letter.event.data == b'{"size": 2}', "as it came"
    assert taken.bodies == [b'{"size": 2}'], "the other route has it all the same"


@pytest.mark.parametrize(
    ("when", "body", "then"),
    [
        ('attributes.encoding == "gzip"', b"plain", "no_match"),
        ('attributes.encoding == "gzip" && data.size > 1', b"plain", "no_match"),
        ("has(attributes.other) && has(data.size)", b"plain", "no_match"),
        ("attributes.other == 'x'", b"plain", "missing_key"),
        ("data.size > 1", b"plain", "undecodable"),
        ('attributes.encoding != "gzip" || data.size > 1', b"plain", "undecodable"),
        ('"other" in attributes && attributes.other == "gzip" && has(data.size)', b"plain", "no_match"),
        ('attributes.other == "gzip" && data.size > 1', b"plain", "undecodable"),
        ("has(data.size) && data.size > 1", b"plain", "undecodable"),
        ("type(data) == map", b'{"size": 1}', "undecodable"),
        ("data.size > 1", b'{"size": 1}', "undecodable"),
        ("data.size > 1", b'{"other": 1}', "undecodable"),
        (None, b"plain", "undecodable"),
    ],
)
async def test_what_is_plainly_not_meant_need_not_be_decodable(
    when: str | None, body: bytes, then: str
) -> None:
    taken = Taken(route(when=when, decode="gzip"))
    outcome = await taken.send(body, attributes={"encoding": "identity"})
    if then == "undecodable":
        assert outcome is Outcome.DEAD_LETTERED
        assert [letter.cause for letter in taken.house.dead.letters] == [then]
    else:
        assert outcome is Outcome.FILTERED
        assert taken.house.filtered(then) == 1


async def test_what_is_too_long_to_be_encoded_is_a_dead_letter() -> None:
    taken = Taken(route(encode="gzip"))
    assert await taken.send(bytes(MOST + 1)) is Outcome.DEAD_LETTERED
    (letter,) = taken.house.dead.letters
    assert letter.detail == f"{MOST + 1} bytes are too many for `encode: gzip`: {MOST} at most"


async def test_decoding_gives_way_to_the_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond goes by at each look on the clock, so at least one a piece."""
    clock = itertools.count(step=0.001)
    monkeypatch.setattr(router_module, "perf_counter", lambda: next(clock))
    house = House(route(when="false", decode="gzip"), plants=ACCEPTED)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await house.router.route(Delivery(event("a", gzip.compress(bytes(MOST)))))
    task.cancel()
    assert turns >= 2


def intake_of(house: House, most: int, deliveries: Sequence[Delivery]) -> Intake:
    """An intake for the router of `house`, with those deliveries in it."""
    intake = house.router._intake = Intake(1000, most, Metrics().source("uploads"))
    intake.admit(deliveries)
    return intake


async def test_what_is_decoded_takes_room_and_the_next_waits_for_it() -> None:
    """A thousand bytes that open to a million: no more of them at once than the source may have."""
    house = House(route(decode="gzip"), plants=ACCEPTED)
    bodies = [gzip.compress(bytes(MOST)) for _ in range(6)]
    given = [Delivery(Event(id=str(at), source="uploads", type="t", data=bodies[at])) for at in range(6)]
    intake = intake_of(house, 3 * MOST - 1, given)

    async def routed() -> None:
        for delivery in given:
            await house.router.route(delivery)

    routing = asyncio.create_task(routed())
    lane = house.benches["plants"]
    while lane.value("bridge_lane_queued") < 3:
        await asyncio.sleep(1)
    await asyncio.sleep(60)
    assert lane.value("bridge_lane_queued") == 3, "the fourth waits"
    assert intake.free == 0
    async with lane.running():
        await routing
        while intake.in_flight:
            await asyncio.sleep(1)
    assert house.invoked("plants") == 6
    assert intake.free == 1000


async def test_one_that_is_given_back_while_it_waits_goes_nowhere() -> None:
    house = House(route(decode="gzip"), plants=ACCEPTED)
    given = [Delivery(event(at, gzip.compress(bytes(MOST)))) for at in range(2)]
    intake = intake_of(house, MOST, given)
    await house.router.route(given[0])
    waiting = asyncio.create_task(house.router.route(given[1]))
    await asyncio.sleep(1)
    assert not waiting.done()
    intake.release()
    await waiting
    assert [delivery.outcome for delivery in given] == [Outcome.RELEASED] * 2
    assert house.benches["plants"].value("bridge_lane_queued") == 0
    assert intake.in_flight == 0
