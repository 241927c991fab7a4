"""The API and the page over real sockets: who is let in, and what everybody else gets."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from structlog.testing import capture_logs

from bridge.core.errors import StoreError
from bridge.web import HttpConfig, access, serve
from bridge.web.access import is_ours
from bridge.web.answers import NotThereError

TOKEN = "s3cret-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SECRET = "of-an-event"
"""In whatever a command answers."""
PATHS = [
    "/",
    "/page/",
    "/page/page.js",
    "/api",
    "/api/",
    "/api/status",
    "/api/history",
    "/api/events?query=x",
    "/api/dead-letters",
    "/api/dead-letters/1",
    "/api/parked",
    "/api/commands",
    "/nothing",
    "/api/../livez",
    "/livez/../api/status",
    "//api/status",
    "/api//status",
    "/api/status/",
    "/%61pi/status",
    "/api%2fstatus",
    "/livez/api/status",
    "/livez?/api/status",
    "/API/STATUS",
]


async def everything(command: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer as a bridge that has seen events does."""
    match command["do"]:
        case "status":
            return {"secret": SECRET, "asked": dict(command)}
        case "gone":
            raise NotThereError(f"no {SECRET}")
        case "wrong":
            raise ValueError(f"wrong {SECRET}")
        case "broken":
            raise StoreError(f"broken {SECRET}")
        case "defect":
            raise ZeroDivisionError(SECRET)
    return {"secret": SECRET, "asked": dict(command)}


class Asked:
    """One bridge's HTTP port, asked in plain bytes: clients mend what they send."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])

    async def raw(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def get(
        self,
        path: str,
        method: str = "GET",
        host: str | None = "localhost",
        body: bytes = b"",
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if host is not None:
            lines.append(f"Host: {host}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        answer = await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in rest), content


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
async def bridge(token_file: Path) -> AsyncIterator[Asked]:
    config = HttpConfig(port=0, token_file=token_file, names=("Bridge.example.org",))
    async with serve(config, CollectorRegistry(), list, everything) as url:
        yield Asked(url)


@pytest.fixture
async def closed() -> AsyncIterator[Asked]:
    async with serve(HttpConfig(port=0), CollectorRegistry(), list, everything) as url:
        yield Asked(url)


async def test_who_has_the_token_is_answered(bridge: Asked) -> None:
    status, headers, body = await bridge.get("/api/status", **BEARER)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(body) == {"secret": SECRET, "asked": {"do": "status"}}


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xff"]
)
async def test_nobody_else_is_whatever_they_ask_for(bridge: Asked, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "TRACE"):
        for path in PATHS:
            status, _, body = await bridge.get(path, method, **headers)
            assert SECRET.encode() not in body
            if path not in ("/", "/page/page.js") and not path.startswith("/livez?"):
                assert status in (401, 429), (method, path)


async def test_without_a_token_file_there_is_nothing_but_what_is_open(closed: Asked) -> None:
    for path in PATHS:
        status, _, body = await closed.get(path, **BEARER)
        if not path.startswith("/livez?"):
            assert status == 404
            assert b"http.token_file" in body
        assert SECRET.encode() not in body
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await closed.get(path, host="evil.example.org"))[0] == 200


async def test_two_tokens_are_none(bridge: Asked) -> None:
    twice = f"GET /api/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    answer = await bridge.raw(f"{twice}Authorization: Bearer x\r\n\r\n".encode())
    assert answer.split()[1] in (b"401", b"400")
    answer = await bridge.raw(f"{twice}Host: evil.example.org\r\n\r\n".encode())
    assert answer.split()[1] in (b"403", b"400")


async def test_too_many_failures_are_told_so_and_a_right_token_is_never_locked_out(
    bridge: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = monotonic() + 60
    monkeypatch.setattr(access, "monotonic", lambda: now)
    found = [(await bridge.get("/api/status", Authorization="Bearer x"))[0] for _ in range(8)]
    assert found == [401] * 5 + [429] * 3
    assert (await bridge.get("/api/status", **BEARER))[0] == 200
    now += 0.25  # a fifth of a second, but for rounding
    found = [(await bridge.get("/api/status"))[0] for _ in range(2)]
    assert found == [401, 429]
    now += 3600
    found = [(await bridge.get("/api/status"))[0] for _ in range(6)]
    assert found == [401] * 5 + [429]


async def test_a_token_that_is_written_anew_takes_the_place_of_the_old_one(
    bridge: Asked, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = monotonic() + 60
    monkeypatch.setattr(access, "monotonic", lambda: now)
    assert (await bridge.get("/api/status", **BEARER))[0] == 200
    write(token_file, "\ufeffother\r\n")  # as an editor of Windows does it
    now += 1.1
    assert (await bridge.get("/api/status", **BEARER))[0] == 401
    assert (await bridge.get("/api/status", Authorization="bearer other"))[0] == 200


@pytest.mark.parametrize("text", ["", "two\nlines\n", "a b", "gé"])
async def test_without_a_usable_token_nobody_is_let_in_and_the_log_tells_why(
    bridge: Asked, token_file: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = monotonic() + 60
    monkeypatch.setattr(access, "monotonic", lambda: now)
    write(token_file, text)
    with capture_logs() as logs:
        for _ in range(3):
            for authorization in (f"Bearer {TOKEN}", f"Bearer {text}".splitlines()[0], "Bearer", "Bearer "):
                status, _, body = await bridge.get("/api/status", Authorization=authorization)
                assert status in (503, 400)
                assert str(token_file).encode() not in body
            now += 2
    (line,) = logs
    assert line["log_level"] == "error"
    assert "nobody can be let in" in line["event"]
    write(token_file, TOKEN)
    assert (await bridge.get("/api/status", **BEARER))[0] == 200


@pytest.mark.parametrize("text", ["a b\n", "gé\n", "one\ntwo\n", "", "\tx"])
def test_a_token_that_no_header_can_carry_is_refused_at_the_start(token_file: Path, text: str) -> None:
    token_file.write_text(text)
    with pytest.raises(ValidationError):
        HttpConfig(token_file=token_file)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True),
        ("LOCALHOST:9464", True),
        ("127.0.0.1:1", True),
        ("192.0.2.7", True),
        ("[::1]:9464", True),
        ("[2001:db8::1]", True),
        ("bridge.example.org", True),
        ("bridge.example.org.:443", True),
        ("evil.example.org", False),
        ("localhost.evil.example.org", False),
        ("127.0.0.1.evil.example.org", False),
        ("bridge.example.org.evil", False),
        ("[::1", False),
        ("[bridge.example.org]", True),
        ("", False),
        ("evil.example.org:localhost", False),
        ("localhost:80:80", False),
        ("localhost@evil.example.org", False),
        ("localhost ", False),
    ],
)
def test_a_name_that_is_not_ours_is_refused(host: str, ours: bool) -> None:
    assert is_ours(host, ("bridge.example.org",)) is ours


async def test_a_page_of_another_site_gets_nothing_by_its_own_name(bridge: Asked) -> None:
    for path in PATHS:
        if path.startswith("/livez?"):
            continue
        for host in ("evil.example.org", None, ""):
            status, _, body = await bridge.get(path, host=host, **BEARER)
            assert status in (403, 400), (path, host)
            assert SECRET.encode() not in body
    assert (await bridge.get("/api/status", host="bridge.example.org:443", **BEARER))[0] == 200


async def test_every_answer_forbids_foreign_scripts_frames_and_caches(bridge: Asked) -> None:
    for path in (*PATHS, "/livez", "/readyz", "/metrics"):
        for headers in ({}, BEARER):
            _, found, _ = await bridge.get(path, **headers)
            assert found["X-Content-Type-Options"] == "nosniff"
            assert found["Cache-Control"] == "no-store"
            assert found["Referrer-Policy"] == "no-referrer"
            assert found["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
            assert "Access-Control-Allow-Origin" not in found
            assert "Set-Cookie" not in found
            assert "ython" not in found["Server"]


async def test_the_page_needs_no_token_and_holds_nothing(bridge: Asked) -> None:
    status, headers, body = await bridge.get("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"OSCAR Event Bridge" in body
    assert (await bridge.get("/page/../config.py", **BEARER))[0] == 404
    assert (await bridge.get("/page/..%2fconfig.py", **BEARER))[0] == 404
    assert (await bridge.get("/page/__init__.py", **BEARER))[0] == 404


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/api/history?hours=1.5", {"do": "history", "hours": 1.5}),
        ("/api/events?query=a%2Fb&source=uploads", {"do": "events", "query": "a/b", "source": "uploads"}),
        (
            "/api/dead-letters?service=&text=x&before=9&limit=2",
            {"do": "dead-letters", "text": "x", "before": 9, "limit": 2},
        ),
        ("/api/dead-letters/12", {"do": "dead-letter", "number": 12}),
        ("/api/parked?service=plants", {"do": "parked", "service": "plants"}),
    ],
)
async def test_a_path_is_a_command(bridge: Asked, path: str, command: dict[str, Any]) -> None:
    status, _, body = await bridge.get(path, **BEARER)
    assert (status, json.loads(body)["asked"]) == (200, command)


@pytest.mark.parametrize(
    "path",
    [
        "/api/dead-letters?limit=many",
        "/api/status?do=discard",
        "/api/dead-letters?limit=1&limit=2",
        "/api/history?hours=x",
    ],
)
async def test_a_wrong_query_is_told(bridge: Asked, path: str) -> None:
    assert (await bridge.get(path, **BEARER))[0] == 400


@pytest.mark.parametrize(
    ("do", "status"), [("gone", 404), ("wrong", 400), ("broken", 503), ("defect", 500), ("x", 200)]
)
async def test_what_comes_of_a_command_is_told(bridge: Asked, do: str, status: int) -> None:
    found, _, body = await bridge.get("/api/commands", "POST", body=json.dumps({"do": do}).encode(), **BEARER)
    assert (found, SECRET in body.decode()) == (status, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'"status"', b"null"])
async def test_a_body_that_is_no_command_is_told(bridge: Asked, body: bytes) -> None:
    assert (await bridge.get("/api/commands", "POST", body=body, **BEARER))[0] == 400


async def test_an_enormous_body_is_refused(bridge: Asked) -> None:
    async with (
        aiohttp.ClientSession(headers=BEARER) as session,
        session.post(f"{bridge.url}/api/commands", data=BytesIO(b" " * (1 << 21))) as answer,
    ):
        assert answer.status == 413
    head = b"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    writer.write(head)
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 "), "none of it is waited for"
    writer.transport.abort()


async def test_nothing_is_logged_for_what_is_no_request(
    bridge: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (
        b"GET /api/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /api/status HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ):
        assert (await bridge.raw(request)).split()[1] == b"400"
    assert caplog.records == []


async def test_nothing_is_unpacked_for_who_has_no_token_or_sends_too_much(bridge: Asked) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    for authorization in ({}, BEARER):
        status, _, _ = await bridge.get(
            "/api/commands", "POST", body=bomb, **{"Content-Encoding": "gzip"}, **authorization
        )
        assert status == (400 if authorization else 401)


async def test_who_breaks_off_is_no_defect(bridge: Asked, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    head = f"POST /api/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    await bridge.get("/livez")
    writer.transport.abort()
    await bridge.get("/livez")
    assert await reader.read() == b""
    assert caplog.records == []


async def test_another_method_is_told_to_who_has_the_token(bridge: Asked) -> None:
    status, headers, _ = await bridge.get("/api/status", "POST", **BEARER)
    assert (status, headers["Allow"]) == (405, "GET,HEAD")
    assert (await bridge.get("/api/commands", **BEARER))[0] == 405
    assert (await bridge.get("/livez", "POST"))[0] == 405
