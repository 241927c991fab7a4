"""Connections by TLS, and who holds many: probes are answered all the same."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from bridge.net.loop import Loop
from bridge.testing import until
from bridge.values import CertifiedKey
from bridge.web import HttpConfig, serve
from tests.net.authority import Authority
from tests.web.holding import half_a_request, is_open

loops = pytest.mark.parametrize("loop", [Loop, asyncio.SelectorEventLoop])
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
BEARER = {"Authorization": "Bearer secret"}


def run(loop: LoopFactory, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(main, 60))


async def echo(command: Mapping[str, Any]) -> Mapping[str, Any]:
    return command


class Certified:
    """A certificate in a file, and callers who believe its authority."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "http.pem"
        self.authority = Authority("of the site")
        self.renew()
        self.config = HttpConfig(port=0, tls=CertifiedKey(cert_file=self.file))
        self.caller = ssl.create_default_context(cadata=self.authority.pem.decode())

    def renew(self) -> int:
        """Write another one; give its number."""
        certificate, pem = self.authority.issue("localhost")
        self.file.write_bytes(pem)
        return certificate.serial_number


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return Certified(tmp_path)


@loops
def test_by_tls_all_is_answered_and_a_renewed_certificate_is_shown(
    certified: Certified, loop: LoopFactory, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    config = certified.config.model_copy(update={"token_file": token})

    async def main() -> None:
        async def ask(path: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
            async with (
                aiohttp.ClientSession() as http,
                http.request(method, url + path, ssl=certified.caller, **more) as answer,
            ):
                return answer.status, await answer.read()

        async def shown() -> int:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=certified.caller, server_hostname="localhost"
            )
            told = writer.get_extra_info("peercert")
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.read()).endswith(b"ok\n")
            writer.close()
            return int(told["serialNumber"], 16)

        async with serve(config, CollectorRegistry(), list, echo) as url:
            assert url.startswith("https://127.0.0.1:")
            assert await ask("/livez") == (200, b"ok\n")
            status, body = await ask("/metrics")
            assert (status, b"python_info" in body) == (200, True)
            assert await ask("/api/status", headers=BEARER) == (200, b'{"do": "status"}')
            long = {"do": "x", "text": "x" * 300_000}
            status, body = await ask("/api/commands", "POST", headers=BEARER, json=long)
            assert (status, len(body)) == (200, len(body))
            assert len(body) > 300_000
            first, renewed = await shown(), certified.renew()
            assert await shown() == renewed != first
            certified.file.write_text("half writ")
            assert await shown() == renewed, "the former one until the new one can be used"
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"ok" not in await reader.read()
            writer.close()

    run(loop, main())


@loops
def test_who_opens_connections_and_does_not_agree_on_tls_has_few_and_none_for_long(
    certified: Certified, monkeypatch: pytest.MonkeyPatch, loop: LoopFactory
) -> None:
    monkeypatch.setattr("bridge.web.connections.MOST_CONNECTIONS", 8)

    async def main() -> None:
        async with serve(certified.config, CollectorRegistry(), list, echo) as url:
            with ExitStack() as stack:
                callers = []
                for _ in range(50):
                    callers.append(half_a_request(stack, url, b"\x16\x03\x01"))
                    await asyncio.sleep(0)
                async with (
                    aiohttp.ClientSession() as http,
                    http.get(f"{url}/livez", ssl=certified.caller) as answer,
                ):
                    assert answer.status == 200
                await until(lambda: sum(map(is_open, callers)) <= 8)
                monkeypatch.setattr("bridge.web.connections.REQUEST_SECONDS", 0.1)
                last = half_a_request(stack, url, b"")
                await until(lambda: not is_open(last))

    run(loop, main())


async def test_who_does_not_agree_on_tls_does_not_hold_the_stop(certified: Certified) -> None:
    with ExitStack() as stack:
        async with asyncio.timeout(5):
            async with serve(certified.config, CollectorRegistry(), list, echo) as url:
                half_a_request(stack, url, b"")
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_a_file_without_certificate_and_key_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "pem").write_text(text)
    with pytest.raises(ValidationError, match="expected a certificate and its key in PEM"):
        CertifiedKey(cert_file=tmp_path / "pem")


async def test_probes_are_answered_while_the_api_is_asked_more_than_it_can_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever has the token, and by who holds connections besides."""
    monkeypatch.setattr("bridge.web.connections.MOST_CONNECTIONS", 8)
    monkeypatch.setattr("bridge.web.connections.REQUEST_SECONDS", 0.5)
    (tmp_path / "token").write_text("secret")
    go_on, asked = asyncio.Event(), 0

    async def slow(command: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return command

    config = HttpConfig(port=0, token_file=tmp_path / "token")
    async with (
        serve(config, CollectorRegistry(), list, slow) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):

        async def ask() -> int:
            async with http.get(f"{url}/api/status", headers=BEARER) as answer:
                await answer.read()
                return answer.status

        asking = []
        for number in range(16):
            asking.append(asyncio.create_task(ask()))
            await until(lambda number=number: asked > number)
        assert await ask() == 503, "more than sixteen at once"
        with ExitStack() as stack:
            holding = [half_a_request(stack, url) for _ in range(20)]
            for _ in range(10):
                async with http.get(f"{url}/readyz") as answer:
                    assert answer.status == 200
            await until(lambda: not any(map(is_open, holding)))
        assert not any(task.done() for task in asking), "nobody who is heard is hung up on"
        go_on.set()
        assert await asyncio.gather(*asking) == [200] * 16
        assert await ask() == 200


async def test_an_answer_that_nobody_reads_is_not_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.web.connections.REQUEST_SECONDS", 0.2)
    (tmp_path / "token").write_text("secret")

    async def large(_command: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": "x" * (32 << 20)}

    config = HttpConfig(port=0, token_file=tmp_path / "token")
    async with serve(config, CollectorRegistry(), list, large) as url:
        with ExitStack() as stack:
            request = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n"
            caller = half_a_request(stack, url, request)
            await asyncio.sleep(1)
            caller.setblocking(True)
            got = await asyncio.to_thread(read_all, caller)
            assert got < 32 << 20


def read_all(caller: Any) -> int:
    total = 0
    try:
        while part := caller.recv(1 << 20):
            total += len(part)
    except ConnectionResetError:
        pass
    return total
