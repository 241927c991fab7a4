"""The stream: ids, the ring, what a `Last-Event-ID` brings back, and when it is EVENT_LOSS."""

import json
from collections import deque
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sandbox.dcache import SandboxDcache, Settings
from bridge.sandbox.dcache.channel import Channel
from tests.servers.dcache import created, listening, new_channel, subscribe, watch


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache(Settings(ring=4)) as site:
        await site.mkdir("/data")
        yield site


async def make(site: SandboxDcache, *names: str) -> None:
    for name in names:
        await site.mkdir(f"/data/{name}")


async def test_ids_count_from_0_in_each_channel(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        await make(site, "a", "b")
        assert await listener.take(2) == created(0, "a", "b")
    other = await new_channel(http)
    await watch(http, other, "/data", "IN_CREATE")
    async with listening(http, other) as listener:
        await make(site, "c")
        assert await listener.take(1) == created(0, "c")


async def test_events_before_the_first_connection_count_and_come_only_if_asked_for(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, "a", "b")
    async with listening(http, channel) as listener:
        await make(site, "c")
        assert await listener.take(1) == created(2, "c")
    async with listening(http, channel, "0") as listener:
        assert await listener.take(2) == created(1, "b", "c")


async def test_what_came_after_the_last_id_is_replayed_and_then_the_new(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, "a", "b", "c")
    for _ in range(2):  # the event itself stays in the ring, so the same question has the same answer
        async with listening(http, channel, "1") as listener:
            assert await listener.take(1) == created(2, "c")
    async with listening(http, channel, "2") as listener:
        await make(site, "d")
        assert await listener.take(1) == created(3, "d")


async def test_an_id_that_left_the_ring_is_a_loss_and_only_new_events_follow(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, *"abcdef")
    async with listening(http, channel, "1") as listener:
        await make(site, "g")
        assert await listener.take(2) == ["SYSTEM EVENT_LOSS", *created(6, "g")]
    # The loss has emptied the ring: what was in it then is not there for anyone.
    async with listening(http, channel, "6") as listener:
        await make(site, "h")
        assert await listener.take(1) == created(7, "h")
    async with listening(http, channel, "5") as listener:
        assert await listener.take(1) == ["SYSTEM EVENT_LOSS"]


async def test_an_id_older_than_one_given_before_is_a_loss(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, "a", "b", "c")
    async with listening(http, channel, "1") as listener:
        assert await listener.take(1) == created(2, "c")
    async with listening(http, channel, "0") as listener:
        assert await listener.take(1) == ["SYSTEM EVENT_LOSS"]


@pytest.mark.parametrize("identity", ["9", "-1"])
async def test_an_id_that_never_was_is_a_loss(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str, identity: str
) -> None:
    await make(site, "a")
    async with listening(http, channel, identity) as listener:
        assert await listener.take(1) == ["SYSTEM EVENT_LOSS"]


async def test_any_id_of_a_fresh_channel_is_a_loss(http: httpx.AsyncClient, channel: str) -> None:
    async with listening(http, channel, "0") as listener:
        assert await listener.take(1) == ["SYSTEM EVENT_LOSS"]


@pytest.mark.parametrize("identity", ["", "last", "1.0", "99999999999", "+1"])
async def test_an_id_that_is_no_number_of_32_bits_replays_nothing_and_loses_nothing(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str, identity: str
) -> None:
    await make(site, "a", "b")
    async with listening(http, channel, identity) as listener:
        await make(site, "c")
        assert await listener.take(1) == created(2, "c")
    async with listening(http, channel, "0") as listener:
        assert await listener.take(2) == created(1, "b", "c")


async def test_system_events_tell_of_subscriptions_and_are_not_replayed(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, "a")
    async with listening(http, channel, "0") as listener:
        location = await watch(http, channel, "/data/a")
        event = await listener.next()
        assert (event.event, json.loads(event.data)) == (
            "SYSTEM",
            {"type": "NEW_SUBSCRIPTION", "subscription": location},
        )
        assert (await subscribe(http, channel, {"path": "/data/a"})).status_code == 303
        assert (await http.delete(location)).status_code == 204
        assert await listener.take(2) == ["SYSTEM SUBSCRIPTION_CLOSED", "1 IN_IGNORED"]
    async with listening(http, channel, "0") as listener:
        assert await listener.take(1) == ["1 IN_IGNORED"]


async def test_the_stream_is_written_as_jersey_writes_it_and_only_inotify_has_an_id(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with http.stream("GET", channel, headers={"Accept": "text/event-stream"}) as stream:
        await make(site, "ü")
        assert (await http.delete(channel)).status_code == 204
        text = (await stream.aread()).decode()
    (location,) = {part.split('"')[0] for part in text.split('"subscription":"')[1:]}
    event = f'{{"event":{{"name":"ü","mask":["IN_CREATE","IN_ISDIR"]}},"subscription":"{location}"}}'
    closed = f'{{"type":"SUBSCRIPTION_CLOSED","subscription":"{location}"}}'
    inotify, system = f"event: inotify\nid: 0\ndata: {event}", f"event: SYSTEM\ndata: {closed}"
    assert text == f"{inotify}\n\n{system}\n\n"


async def test_an_event_names_its_subscription_by_the_host_that_made_the_channel(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    alias = site.base.replace("127.0.0.1", "localhost")
    channel = (await http.post("events/channels", headers={"Host": alias.split("/")[2]})).headers["Location"]
    assert channel.startswith(alias)
    same = channel.replace("localhost", "127.0.0.1")
    location = await watch(http, same, "/data", "IN_CREATE")
    assert location.startswith(site.base)
    async with listening(http, same) as listener:
        await make(site, "a")
        told = json.loads((await listener.next()).data)["subscription"]
    assert told == location.replace("127.0.0.1", "localhost")


class Collected:
    """A client that reads everything."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.lost = False

    def send(self, message: bytes) -> None:
        if b"EVENT_LOSS" in message:
            self.lost = True
        elif message.startswith(b"event: inotify"):
            self.ids.append(int(message.split(b"\n")[1].removeprefix(b"id: ")))

    def close(self) -> None:
        pass


class Anything:
    kind = "inotify"
    identity = "AA"
    url = "http://dcache/watch"

    def ended(self) -> None:
        pass

    def selector(self) -> dict[str, object]:
        return {}


@given(
    ring=st.integers(1, 5),
    steps=st.lists(st.one_of(st.just("event"), st.integers(-1, 12)), max_size=40),
)
async def test_the_ring_replays_exactly_what_a_model_of_it_holds(ring: int, steps: list[str | int]) -> None:
    channel = Channel("id", "user", None, "http://dcache", ring, 100, lambda _: None)
    kept: deque[int] = deque(maxlen=ring)
    made = 0
    for step in steps:
        if step == "event":
            channel.tell(Anything(), "{}")
            kept.append(made)
            made += 1
        else:
            client = Collected()
            channel.connect(client, str(step))
            if step in kept:
                assert not client.lost
                assert client.ids == [one for one in kept if one > int(step)]
                kept = deque((one for one in kept if one >= int(step)), maxlen=ring)
            else:
                assert client.lost
                assert client.ids == []
                kept.clear()
    channel.close()


async def test_a_metronome_ticks_with_ids_until_its_count_is_reached(
    http: httpx.AsyncClient, channel: str
) -> None:
    async with listening(http, channel) as listener:
        selector = {"frequency": 50, "message": "${username} ${count}", "count": 2}
        made = await http.post(f"{channel}/subscriptions/metronome", json=selector)
        assert made.status_code == 201
        told = [await listener.next() for _ in range(4)]
        assert [one.event for one in told] == ["SYSTEM", "metronome", "metronome", "SYSTEM"]
        assert [one.id for one in told[1:3]] == ["0", "1"]
        assert [json.loads(one.data)["event"] for one in told[1:3]] == ["bridge 1", "bridge 2"]
        assert json.loads(told[1].data)["subscription"] == made.headers["Location"]
    assert (await http.get(made.headers["Location"])).status_code == 404


async def test_a_metronome_that_goes_on_is_listed_and_tells_what_it_was_made_with(
    http: httpx.AsyncClient, channel: str
) -> None:
    selector = {"delay": 300, "message": "${count}"}
    made = await http.post(f"{channel}/subscriptions/metronome", json=selector)
    assert (await http.get(f"{channel}/subscriptions")).json()[-1] == made.headers["Location"]
    assert (await http.get(made.headers["Location"])).json() == selector


@pytest.mark.parametrize(
    "selector",
    [[], {}, {"delay": 1, "frequency": 1}, {"delay": 301}, {"delay": 1, "message": ""}, {"delay": 1, "x": 1}],
)
async def test_a_metronome_that_can_not_be_is_refused(
    http: httpx.AsyncClient, channel: str, selector: object
) -> None:
    answer = await http.post(f"{channel}/subscriptions/metronome", json=selector)
    assert answer.status_code == 400
    assert "Bad selector" in answer.json()["errors"][0]["message"]
