"""Channels: how many, whose, how long, and how they are found again."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from bridge.sandbox.dcache import SandboxDcache, Settings
from bridge.testing import until
from tests.servers.dcache import PLAIN, listening, new_channel, watch


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    settings = Settings(users={"bridge": "bridge", "other": "secret"}, tokens={"t0k": "other"})
    async with SandboxDcache(settings) as site:
        yield site


def problem(answer: httpx.Response) -> tuple[int, str]:
    (error,) = answer.json()["errors"]
    assert error["status"] == str(answer.status_code)
    return answer.status_code, error["message"]


async def test_a_channel_is_found_again_by_its_client_id(http: httpx.AsyncClient) -> None:
    named = await new_channel(http, **{"client-id": "replica-1"})
    nameless = await new_channel(http)
    also_nameless = (await http.post("events/channels")).headers["Location"]
    assert (await http.get("events/channels", params={"client-id": "replica-1"})).json() == [named]
    assert (await http.get("events/channels", params={"client-id": ""})).json() == [nameless, also_nameless]
    assert (await http.get("events/channels", params={"client-id": "replica-2"})).json() == []
    assert (await http.get("events/channels")).json() == [named, nameless, also_nameless]


async def test_a_client_id_is_known_by_its_first_256_characters(http: httpx.AsyncClient) -> None:
    channel = await new_channel(http, **{"client-id": "x" * 300})
    found = await http.get("events/channels", params={"client-id": "x" * 256})
    assert found.json() == [channel]


async def test_a_user_has_so_many_channels_and_no_more(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    site.settings.channels_per_user = 2
    first, _second = [await new_channel(http) for _ in range(2)]
    assert problem(await http.post("events/channels")) == (429, "Too Many Requests")
    assert (await http.post("events/channels", auth=("other", "secret"))).status_code == 201
    assert (await http.delete(first)).status_code == 204
    assert (await http.post("events/channels")).status_code == 201


async def test_another_users_channel_is_forbidden_and_not_listed(http: httpx.AsyncClient) -> None:
    channel = await new_channel(http)
    other = ("other", "secret")
    assert problem(await http.get(channel, auth=other)) == (403, "Forbidden")
    assert (await http.delete(channel, auth=other)).status_code == 403
    assert (await http.get("events/channels", auth=other)).json() == []


async def test_only_the_limits_are_told_to_the_anonymous(site: SandboxDcache) -> None:
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.base) as anonymous:
        assert (await anonymous.get("events")).json() == {
            "channels": {
                "maximumPerUser": 128,
                "lifetimeWhenDisconnected": {"minimum": 1, "maximum": 86400, "default": 300},
            }
        }
        for method, path in (
            ("GET", "events/eventTypes"),
            ("GET", "events/channels"),
            ("POST", "events/channels"),
            ("GET", "events/channels/any"),
            ("GET", "namespace/"),
        ):
            answer = await anonymous.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic")


async def test_basic_and_bearer_logins_are_taken_and_wrong_ones_refused(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    channel = await new_channel(http)
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.base) as client:
        for headers, status in (
            ({"Authorization": "Bearer t0k"}, 403),
            ({"Authorization": "Bearer no"}, 401),
            ({"Authorization": "Basic !"}, 401),
            ({"Authorization": "Negotiate abc"}, 401),
        ):
            assert (await client.get(channel, headers=headers)).status_code == status
        assert (await client.get(channel, auth=("bridge", "wrong"))).status_code == 401
        assert (await client.get("events", auth=("bridge", "wrong"))).status_code == 401


async def test_the_accept_header_decides_between_metadata_and_stream(http: httpx.AsyncClient) -> None:
    channel = await new_channel(http)
    answer = await http.get(channel, headers={"Accept": "application/json"})
    assert answer.json() == {"timeout": 300}
    async with http.stream("GET", channel, headers={"Accept": "text/event-stream"}) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"


async def test_the_event_types_and_the_selectors_schema_are_told(http: httpx.AsyncClient) -> None:
    assert (await http.get("events/eventTypes")).json() == ["inotify", "metronome"]
    assert "inotify(7)" in (await http.get("events/eventTypes/inotify")).json()["description"]
    schema = (await http.get("events/eventTypes/inotify/selector")).json()
    assert schema["properties"]["path"]["pattern"] == "^/(.*[^/])?$"
    assert "messages" in (await http.get("events/eventTypes/metronome")).json()["description"]
    assert problem(await http.get("events/eventTypes/sundial")) == (404, "No such event type")


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"timeout": 0}, 400, "Timeout shorter than minimum allowed"),
        ({"timeout": 86_401}, 400, "Timeout longer than maximum allowed"),
        ({"timeout": "long"}, 400, "Unable to interpret JSON: timeout is a whole number of seconds"),
        ({"lifetime": 5}, 400, "'lifetime' is an unrecognized field."),
    ],
)
async def test_a_timeout_out_of_bounds_is_refused(
    http: httpx.AsyncClient, document: dict[str, object], status: int, message: str
) -> None:
    channel = await new_channel(http)
    assert problem(await http.patch(channel, json=document)) == (status, message)
    assert (await http.get(channel)).json() == {"timeout": 300}


async def test_a_timeout_within_bounds_is_kept(http: httpx.AsyncClient) -> None:
    channel = await new_channel(http)
    for seconds in (1, 86_400):
        answer = await http.patch(channel, json={"timeout": seconds})
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await http.get(channel)).json() == {"timeout": seconds}


async def test_a_body_that_is_no_json_is_refused(http: httpx.AsyncClient) -> None:
    channel = await new_channel(http)
    headers = {"Content-Type": "application/json"}
    status, message = problem(await http.patch(channel, content=b"{", headers=headers))
    assert (status, message.partition(":")[0]) == (400, "Supplied JSON is invalid")
    answer = await http.patch(channel, content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert problem(await http.post("events/channels", json={"client_id": "x"}))[0] == 400


async def test_a_channel_that_was_deleted_is_gone_and_ends_its_stream(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    await site.mkdir("/data")
    channel = await new_channel(http)
    await watch(http, channel, "/data")
    async with listening(http, channel) as listener:
        assert (await http.delete(channel)).status_code == 204
        assert await listener.rest() == ["SYSTEM SUBSCRIPTION_CLOSED", "end"]
    assert problem(await http.get(channel)) == (404, "No such channel")
    assert (await http.patch(channel, json={"timeout": 5})).status_code == 404
    assert site.watched == []


async def test_a_channel_nobody_listens_to_ends_in_time(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    await site.mkdir("/data")
    site.settings.timeout_seconds = 0.05
    channel = await new_channel(http)
    await watch(http, channel, "/data")
    await until(lambda: not site.watched)
    assert (await http.get(channel)).status_code == 404
    assert (await http.get("events/channels")).json() == []


async def test_a_channels_life_time_begins_again_when_its_client_goes(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    await site.mkdir("/data")
    channel = await new_channel(http)
    async with listening(http, channel):
        (there,) = site.trouble._channels.values()
        there.timeout_seconds = 0.05
        await watch(http, channel, "/data")
        # Longer than the life-time without a client; the loop's own clock decides, so no race.
        await asyncio.sleep(0.1)
        assert site.watched == ["/data"]
    await until(lambda: not site.watched)


async def test_a_longer_timeout_saves_a_channel_that_waits(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    site.settings.timeout_seconds = 1
    channel = await new_channel(http)
    assert (await http.patch(channel, json={"timeout": 100})).status_code == 204
    await asyncio.sleep(1.1)
    assert (await http.get(channel)).json() == {"timeout": 100}


async def test_a_second_client_ends_the_first(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    await site.mkdir("/data")
    channel = await new_channel(http)
    await watch(http, channel, "/data", "IN_CREATE")
    async with listening(http, channel) as first, listening(http, channel) as second:
        assert await first.rest() == ["SYSTEM COMPETING_CLIENT", "end"]
        await site.mkdir("/data/new")
        assert await second.take(1) == ["0 IN_CREATE|IN_ISDIR new"]


async def test_the_newer_form_of_errors_is_spoken_on_request(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    site.settings.rfc7807 = True
    assert (await http.get("events/channels/gone")).json() == {
        "status": "404",
        "title": "Not Found",
        "detail": "No such channel",
    }
