"""An event that is done goes once more, as a new one, when a person asks for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import TopicPartition

from bridge import again
from bridge.again import Again, Order, give
from bridge.core.event import Event
from bridge.core.ports import NO_LANE, DeadLetter
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar
from bridge.store import Filter, Store, orders
from bridge.store.changes import Change
from bridge.telemetry.metrics import Metrics
from bridge.why import Fate, Hands
from bridge.why.hands import InHand
from tests.servers.tansu import Tansu
from tests.why.place import FILE, Place, arrivals, event, make_job, version_of_file


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with Store.open(place.state_dir, Metrics()) as store:
        yield store


async def once_more(place: Place, store: Store, event_id: str, **more: Any) -> dict[str, Any]:
    return await Again(place.settings(**more), store).carry_out({"do": "again", "id": event_id})


async def refused(place: Place, store: Store, event_id: str, **more: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as told:
        await once_more(place, store, event_id, **more)
    return str(told.value)


async def forget(store: Store, number: int) -> None:
    """Return once it is gone from the disk."""
    store.forget(number)
    await store.write(lambda _connection: (None, Change()))


class Topic:
    """A topic of one partition that the group has read to its end, but for what is put there later."""

    def __init__(self, tansu: Tansu, place: Place, name: str) -> None:
        self._tansu = tansu
        self.name = name
        self.sources = {"sources": {"uploads": place.kafka(tansu.bootstrap_servers, name)}}

    async def put(self, *values: bytes, at: int = 1764500000000) -> None:
        for value in values:
            await self._tansu.produce(self.name, [(FILE.encode(), value)], timestamp_ms=at)

    async def read_to(self, offset: int) -> None:
        await self._tansu.commit(self.name, {TopicPartition(self.name, 0): offset})

    def id_of(self, offset: int) -> str:
        return f"{self.name}/0/{offset}@1764500000000"


@pytest.fixture
async def topic(tansu: Tansu, place: Place, unique: str) -> Topic:
    await tansu.create_topic(unique)
    return Topic(tansu, place, unique)


async def test_a_record_of_kafka_is_read_again_and_goes_its_routes_as_a_new_event(
    topic: Topic, place: Place, store: Store
) -> None:
    await topic.put(b"one", b"two")
    await topic.read_to(2)
    event_id = topic.id_of(1)
    assert await once_more(place, store, event_id, **topic.sources) == {
        "source": "uploads",
        "id": event_id,
        "as": f"{event_id}+1",
    }
    (parked,) = await store.parked(NO_LANE, without=(), limit=10)
    assert (parked.event.id, parked.event.data) == (f"{event_id}+1", b"two")
    assert (parked.event.source, parked.event.subject) == ("uploads", FILE)
    on_its_way = f"it goes round its routes already, as {event_id}+1"
    assert await refused(place, store, event_id, **topic.sources) == on_its_way
    assert await refused(place, store, f"{event_id}+1", **topic.sources) == on_its_way, "by its new id too"
    await forget(store, parked.number)
    second = await once_more(place, store, f"{event_id}+1", **topic.sources)
    assert (second["id"], second["as"]) == (event_id, f"{event_id}+2"), (
        "each time with an identity of its own"
    )
    (story,) = (await place.ask(event_id, **topic.sources)).events
    assert (story.id, [told.fate for told in story.fates]) == (event_id, [Fate.PARKED])


async def test_what_kafka_can_not_give_once_more_is_refused_with_the_reason(
    topic: Topic, place: Place, store: Store
) -> None:
    await topic.put(b"one", b"two")
    await topic.read_to(1)
    beginning = "it can't go once more: uploads: "

    async def reason(event_id: str) -> str:
        return (await refused(place, store, event_id, **topic.sources)).removeprefix(beginning)

    group = f"the group {topic.name}"
    assert (
        await reason(topic.id_of(1)) == f"it is record 1 of {topic.name}/0, and {group} has read it up to 1"
    )
    assert (
        await reason(f"{topic.name}/0/0@5")
        == "another record is in its place: the topic was made anew, or `open` was changed"
    )
    assert await reason("s3://box/a.nc?event=x") == (
        "its id does not tell where in Kafka it is: produce it once more"
    )
    assert await store.parked(NO_LANE, without=(), limit=10) == []


async def test_a_file_of_dcache_goes_again_while_it_is_the_same_version(
    site: SandboxDcache, place: Place, store: Store
) -> None:
    path = "/data/in/leaf-1.nc"
    await site.upload(path, b"x")
    version = await version_of_file(site, path)
    sources = arrivals(site)
    unknown = "it can't go once more: arrivals: where its file was is not known any more"
    assert await refused(place, store, version, **sources) == unknown
    place.journal(
        {"what": "accepted", "source": "arrivals", "service": "plants", "id": version, "subject": path}
    )
    done = await once_more(place, store, version, **sources)
    assert done == {"source": "arrivals", "id": version, "as": f"{version}+1"}
    (parked,) = await store.parked(NO_LANE, without=(), limit=10)
    assert (parked.event.id, parked.event.subject) == (f"{version}+1", path)
    assert json.loads(parked.event.data)["event"] == {"name": "leaf-1.nc", "mask": ["IN_CLOSE_WRITE"]}
    await forget(store, parked.number)
    await site.upload(path, b"another")
    other = await version_of_file(site, path)
    changed = f"{path} is another version by now, which is an event of its own: {other}"
    assert await refused(place, store, version, **sources) == f"it can't go once more: arrivals: {changed}"
    await site.remove(path)
    gone = f"it can't go once more: arrivals: dCache has no {path} any more"
    assert await refused(place, store, version, **sources) == gone


async def test_a_queue_has_it_no_more(place: Place, store: Store) -> None:
    queue = {"sources": {"uploads": {"type": "sqs", "queue": "q", "region": "eu-west-1"}}}
    assert await refused(place, store, "1", **queue) == (
        "it can't go once more: uploads: its message has left the queue: put it there once more"
    )


async def test_a_dead_letter_is_replayed_as_new(oscar: SandboxOscar, place: Place, store: Store) -> None:
    await store.bury(DeadLetter(event=event("1"), service="plants", cause="job_failed", detail=""))
    done = await once_more(place, store, "1")
    assert done == {"source": "uploads", "id": "1", "dead_letters": [1]}
    (parked,) = await store.parked("plants", without=(), limit=10)
    assert parked.event.id == "1+1"
    assert await refused(place, store, "1") == "it is not done yet, but parked for plants"
    await forget(store, parked.number)
    await make_job(oscar, "1+1")
    (story,) = (await place.ask("1")).events
    assert [told.fate for told in story.fates] == [Fate.SUCCEEDED]


async def test_of_its_dead_letters_those_that_go_are_told_and_why_another_stays(
    place: Place, store: Store
) -> None:
    for service in ("removed", "plants"):
        await store.bury(DeadLetter(event=event("1"), service=service, cause="http_500", detail=""))
    done = await once_more(place, store, "1")
    assert done["dead_letters"] == [2]
    assert done["refused"] == [{"dead_letter": 1, "reason": orders.NO_SUCH_LANE}]
    await forget(store, 2)
    assert await refused(place, store, "1") == f"dead letter 1: {orders.NO_SUCH_LANE}"


async def test_a_journal_that_takes_too_long_is_not_read_to_its_begin_and_that_is_told(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.journal({"what": "accepted", "service": "plants", "id": "1"})
    monkeypatch.setattr(again, "_JOURNAL_SECONDS", -1.0)
    assert (await refused(place, store, "1")).endswith(again._CUT_OFF)
    await store.bury(DeadLetter(event=event("1"), service="plants", cause="http_500", detail=""))
    assert (await once_more(place, store, "1"))["notes"] == [again._CUT_OFF]


async def test_no_identity_is_given_twice_whichever_way_it_goes_once_more(store: Store) -> None:
    """By its routes, from its dead letter at one service, and from that of an event that was new already."""
    assert await orders.again(store, event("1")) == "1+1"
    given = []
    for number, name in enumerate(("1", "1+1", "1+2"), start=2):
        await store.bury(DeadLetter(event=event(name), service="plants", cause="http_500", detail=""))
        await orders.replay(store, Filter(numbers=[number]), as_new=True)
        (parked,) = await store.parked("plants", without=(), limit=10)
        given.append(parked.event.id)
        await forget(store, parked.number)
    assert given == ["1+2", "1+3", "1+4"]
    assert await orders.again(store, event("1")) == "1+5"


async def test_what_is_in_hand_is_not_done_yet(place: Place, store: Store) -> None:
    async def hands(_name: object) -> Hands:
        here = InHand(
            source="uploads",
            event_id="1",
            subject=None,
            key=None,
            service="plants",
            doing="it comes next",
            attempts=0,
            since=0.0,
        )
        return Hands([here])

    with pytest.raises(ValueError, match=r"^it is not done yet, but in hand: it comes next$"):
        await Again(place.settings(), store, hands).carry_out({"do": "again", "id": "1"})


async def test_where_two_sources_have_that_id_it_is_said_which(place: Place, store: Store) -> None:
    two = {
        "sources": {key: place.kafka("127.0.0.1:1", "t") for key in ("one", "two")},
        "routes": [{"from": "one", "to": "plants"}],
    }
    for source in ("one", "two"):
        letter = Event(id="1", source=source, type="t", data=b"")
        await store.bury(DeadLetter(event=letter, service="plants", cause="http_500", detail=""))
    assert await refused(place, store, "1", **two) == (
        "events of one, two have that id: say of which, with --source"
    )
    again = Again(place.settings(**two), store)
    done = await again.carry_out({"do": "again", "id": "1", "source": "two"})
    assert done == {"source": "two", "id": "1", "dead_letters": [2]}


async def test_without_a_daemon_it_is_parked_for_the_next_one(place: Place) -> None:
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.bury(DeadLetter(event=event("1"), service="plants", cause="http_500", detail=""))
    done = await give(place.settings(), Order(id="1"))
    assert done["dead_letters"] == [1]
    async with Store.open(place.state_dir, Metrics()) as store:
        assert store.waiting("plants") == 1
