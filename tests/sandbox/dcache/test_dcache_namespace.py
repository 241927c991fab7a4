"""The namespace by REST, the WebDAV door, and logins by certificate."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trustme

from bridge.sandbox.dcache import SandboxDcache, Settings, Version
from bridge.testing import until
from tests.servers.dcache import PLAIN, listening, new_channel, watch


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


@pytest.fixture
async def door(site: SandboxDcache) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.url, auth=("bridge", "bridge")) as client:
        yield client


def version_of(document: dict[str, Any]) -> tuple[str, int | None, int]:
    return document["pnfsId"], document.get("size"), document["mtime"]


def known(version: Version) -> tuple[str, int | None, int]:
    return version.pnfs_id, version.size, version.mtime


# --- REST ---


async def test_a_file_tells_its_version(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    version = await site.upload("/data/in/a.txt", b"123")
    document = (await http.get("namespace/data/in/a.txt")).json()
    assert version_of(document) == known(version)
    assert document["fileType"] == "REGULAR"
    assert document["fileMimeType"] == "text/plain"
    assert "fileName" not in document
    assert "children" not in (await http.get("namespace/data/in/a.txt?children=true")).json()


async def test_a_file_has_no_size_until_its_upload_ends(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    upload = await site.begin_upload("/data/in/a")
    assert "size" not in (await http.get("namespace/data/in/a")).json()
    (child,) = (await http.get("namespace/data/in?children=true")).json()["children"]
    assert "size" not in child
    assert [(version.size, version.closed) for version in site.versions()] == [(None, False)]
    await site.finish_upload(upload)
    assert (await http.get("namespace/data/in/a")).json()["size"] == 0
    assert [(version.size, version.closed) for version in site.versions()] == [(0, True)]


async def test_a_listing_comes_in_pages(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    versions = {f"{number}": await site.upload(f"/data/in/{number}", b"x" * number) for number in range(5)}
    whole = (await http.get("namespace/data/in", params={"children": "true"})).json()
    assert whole["fileType"] == "DIR"
    listed = {child["fileName"]: version_of(child) for child in whole["children"]}
    assert listed == {name: known(version) for name, version in versions.items()}
    pages = []
    for offset in (0, 2, 4, 6):
        query: dict[str, str | int] = {"children": "true", "limit": 2, "offset": offset}
        pages.append((await http.get("namespace/data/in", params=query)).json()["children"])
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert [child for page in pages for child in page] == whole["children"]


async def test_children_are_listed_only_when_asked_for(http: httpx.AsyncClient) -> None:
    for query in ("", "?children=false", "?children=1"):
        assert "children" not in (await http.get(f"namespace/data{query}")).json()
    (child,) = (await http.get("namespace/?children=true")).json()["children"]
    assert child["fileName"] == "data"


@pytest.mark.parametrize("query", ["limit=-1", "offset=-1", "limit=few"])
async def test_a_page_that_cannot_be_is_refused(http: httpx.AsyncClient, query: str) -> None:
    assert (await http.get(f"namespace/data?children=true&{query}")).status_code == 400


async def test_what_is_not_there_is_404(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    await site.upload("/data/in/a")
    for path in ("/nowhere", "/data/in/b", "/data/in/a/b"):
        assert (await http.get(f"namespace{path}")).status_code == 404


async def test_an_unreadable_directory_tells_of_itself_and_nothing_within(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    await site.upload("/data/in/a")
    site.mark_unreadable("/data/in")
    assert (await http.get("namespace/data/in")).status_code == 200
    assert (await http.get("namespace/data/in?children=true")).status_code == 403
    assert (await http.get("namespace/data/in/a")).status_code == 403
    assert (await http.get("namespace/data?children=true")).status_code == 200
    site.mark_unreadable("/data/in", unreadable=False)
    assert (await http.get("namespace/data/in/a")).status_code == 200


@pytest.mark.parametrize(
    "name", ["a b", "100%", "a+b", "%41", "Blätter", "🌱", "a?b#c", "a;b=c", "a&b", "a:b", "new\nline"]
)
async def test_any_name_is_found_by_its_encoded_path(
    http: httpx.AsyncClient, door: httpx.AsyncClient, site: SandboxDcache, name: str
) -> None:
    path = quote(f"/data/in/{name}")
    assert (await door.put(path, content=b"12")).status_code == 201
    (version,) = site.versions()
    assert version.path == f"/data/in/{name}"
    assert version_of((await http.get(f"namespace{path}")).json()) == known(version)
    (child,) = (await http.get("namespace/data/in?children=true")).json()["children"]
    assert child["fileName"] == name
    assert (await door.get(path)).content == b"12"


async def test_dots_and_doubled_slashes_in_a_path_are_resolved(site: SandboxDcache) -> None:
    version = await site.upload("/data//in/./x/../a")
    assert version.path == "/data/in/a"


async def test_the_rest_interface_makes_moves_and_deletes(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    made = await http.post("namespace/data", json={"action": "mkdir", "name": "new"})
    assert made.status_code == 201
    moved = await http.post("namespace/data/new", json={"action": "mv", "destination": "in/deep"})
    assert moved.status_code == 201
    assert site.namespace.lookup("/data/in/deep").is_dir
    moved = await http.post("namespace/data/in/deep", json={"action": "mv", "destination": "/top"})
    assert moved.status_code == 201
    assert (await http.delete("namespace/top")).status_code == 200
    assert (await http.delete("namespace/data")).status_code == 400  # not empty
    for wrong in ({"action": "pin"}, {"action": "mkdir"}, {"action": "mv", "destination": "/data/in/x"}):
        assert (await http.post("namespace/data", json=wrong)).status_code == 400


# --- the door ---


async def test_a_person_with_curl_can_make_move_and_remove(
    door: httpx.AsyncClient, site: SandboxDcache
) -> None:
    assert (await door.request("MKCOL", "/data/out")).status_code == 201
    assert (await door.put("/data/out/a", content=b"1")).status_code == 201
    (first,) = site.versions()
    assert (await door.put("/data/out/a", content=b"22")).status_code == 201
    (second,) = site.versions()
    assert (await door.put("/data/out/a?nfs=1&closes=2", content=b"333")).status_code == 204
    (third,) = site.versions()
    assert first.pnfs_id != second.pnfs_id == third.pnfs_id
    headers = {"Destination": f"{site.url}/data/in/b%20c"}
    assert (await door.request("MOVE", "/data/out/a", headers=headers)).status_code == 201
    assert (await door.get("/data/in")).text == "b c\n"
    assert (await door.get("/data")).text == "in/\nout/\n"
    assert (await door.get("/data/in/b%20c")).content == b"333"
    assert (await door.delete("/data")).status_code == 204
    assert site.versions() == []


async def test_the_door_refuses_what_cannot_be(door: httpx.AsyncClient, site: SandboxDcache) -> None:
    await site.upload("/data/in/a")
    upload = await site.begin_upload("/data/in/growing")
    move = {"Destination": "/data/in/x/y"}
    for method, path, headers, status in (
        ("PUT", "/nowhere/a", {}, 409),
        ("PUT", "/data/in", {}, 405),
        ("PUT", "/data/in/b?nfs=1", {}, 409),
        ("MKCOL", "/data/in", {}, 405),
        ("MKCOL", "/nowhere/in", {}, 409),
        ("MOVE", "/data/in/a", {}, 400),
        ("MOVE", "/data/in/b", {"Destination": "/data/in/c"}, 404),
        ("MOVE", "/data/in", move, 404),
        ("MOVE", "/data", {"Destination": "/data/in/x"}, 409),
        ("DELETE", "/nowhere", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("GET", "/data/in/growing", {}, 409),
        ("PROPFIND", "/data", {}, 405),
    ):
        answer = await door.request(method, path, headers=headers)
        assert (method, path, answer.status_code) == (method, path, status)
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.url) as anonymous:
        assert (await anonymous.get("/data/in/a")).status_code == 401
    site.mark_unreadable("/data/in")
    assert (await door.get("/data/in/a")).status_code == 403
    await site.abort_upload(upload)


async def test_an_upload_is_there_without_a_size_for_as_long_as_its_client_sends(
    door: httpx.AsyncClient, site: SandboxDcache
) -> None:
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"12"
        await go_on.wait()
        yield b"34"

    sending = asyncio.create_task(door.put("/data/in/a", content=body()))
    await until(lambda: [version.size for version in site.versions()] == [None])
    go_on.set()
    assert (await sending).status_code == 201
    assert [(version.size, version.closed) for version in site.versions()] == [(4, True)]


async def test_an_upload_whose_client_goes_away_is_closed_and_removed(
    door: httpx.AsyncClient, http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"12"
        await asyncio.Event().wait()

    channel = await new_channel(http)
    await watch(http, channel, "/data/in", "IN_CREATE", "IN_CLOSE_WRITE", "IN_DELETE")
    async with listening(http, channel) as listener:
        sending = asyncio.create_task(door.put("/data/in/a", content=body()))
        assert await listener.take(1) == ["0 IN_CREATE a"]
        sending.cancel()
        assert await listener.take(2) == ["1 IN_CLOSE_WRITE a", "2 IN_DELETE a"]
    assert site.versions() == []


# --- logins by certificate ---


async def test_tls_and_a_client_certificate_log_in(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_OPTIONAL
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    certified = ssl.create_default_context()
    authority.configure_trust(certified)
    authority.issue_cert("bridge@site").configure_cert(certified)
    async with SandboxDcache(Settings(tls=server)) as site:
        assert site.base.startswith("https://")
        async with httpx.AsyncClient(base_url=site.base, verify=trusting) as client:
            assert (await client.post("events/channels")).status_code == 401
        async with httpx.AsyncClient(base_url=site.base, verify=certified) as client:
            channel = await new_channel(client)
            assert channel.startswith("https://")
        async with httpx.AsyncClient(verify=trusting, auth=("bridge", "bridge")) as client:
            assert (await client.get(channel)).status_code == 200
