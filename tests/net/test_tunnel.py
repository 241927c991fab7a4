"""HTTPS through a proxy: a tunnel, in which all is as without it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from bridge.core.ports import Verdict
from bridge.net.loop import Loop
from tests.destinations.fake_oscar import FakeOscar, event, service, token
from tests.net.authority import Authority, server_context


@asynccontextmanager
async def tunnels(port: int, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy that leads every tunnel to `port` of this machine; gives its own, and what was asked of it."""
    asked: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
        await asyncio.gather(pump(reader, to_server), pump(from_server, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("revoked", [False, True])
def test_a_job_goes_through_a_tunnel_and_a_revoked_server_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, revoked: bool
) -> None:
    authority = Authority("Grid CA")
    certificate, pem = authority.issue("somewhere.test")
    (tmp_path / "server.pem").write_bytes(pem)
    (tmp_path / "proxy.pem").write_bytes(authority.issue("proxy.test")[1])
    authorities = tmp_path / "authorities"
    authorities.mkdir()
    (authorities / "grid.pem").write_bytes(authority.pem)
    (authorities / "grid.r0").write_bytes(authority.revocations([certificate] if revoked else []))

    async def main() -> None:
        tls = server_context(tmp_path / "server.pem")
        async with FakeOscar().serve(tls) as oscar:
            port = int(oscar.url.rpartition(":")[2])
            own = server_context(tmp_path / "proxy.pem") if scheme == "https" else None
            async with tunnels(port, own) as (proxy, asked):
                monkeypatch.setenv("https_proxy", f"{scheme}://me:word@127.0.0.1:{proxy}")
                monkeypatch.delenv("no_proxy", raising=False)
                monkeypatch.delenv("NO_PROXY", raising=False)
                auth = {"type": "service-token", "token": token(1)}
                trust = {"ca_path": str(authorities)}
                async with service("https://somewhere.test", auth, tls=trust) as plants:
                    answer = await plants.prepare(event()).attempt()
            assert asked
            assert asked[0].startswith("CONNECT somewhere.test:443 HTTP/1.1\r\n")
            assert "Proxy-Authorization: Basic bWU6d29yZA==" in asked[0]
            if revoked:
                assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "tls")
                assert not oscar.requests
            else:
                assert answer.verdict is Verdict.ACCEPTED

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))
