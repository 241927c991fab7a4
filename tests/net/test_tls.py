"""Files that change while the bridge runs: our own certificate, and the lists of those that are revoked."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from bridge.net.loop import Loop
from bridge.sources.kafka.config import TlsConfig
from bridge.sources.kafka.security import ssl_context
from bridge.values import Tls
from tests.net.authority import HOUR, NOW, Authority, server_context, serving

loops = pytest.mark.parametrize("loop", [Loop, asyncio.SelectorEventLoop])
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


async def greeted(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


def run(loop: LoopFactory, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


class Grid:
    """A directory of authorities like IGTF's, and a server whose certificate one of them signed."""

    def __init__(self, directory: Path) -> None:
        self.authorities = directory / "certificates"
        self.authorities.mkdir()
        self.authority, self.other = Authority("Grid CA"), Authority("Other CA")
        for name, one in (("grid", self.authority), ("other", self.other)):
            (self.authorities / f"{name}.pem").write_bytes(one.pem)
        (self.authorities / "0a1b2c3d.0").symlink_to("grid.pem")
        self.certificate, pem = self.authority.issue("server.test")
        self.server = directory / "server.pem"
        self.server.write_bytes(pem)

    def context(self) -> ssl.SSLContext:
        return Tls.model_validate({"ca_path": str(self.authorities)}).context()


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


@loops
@pytest.mark.parametrize("name", ["0a1b2c3d.r0", "grid.r0"])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_revoked_server_is_refused_from_the_next_connection_on(
    grid: Grid, loop: LoopFactory, name: str, encoding: Encoding
) -> None:
    async def main() -> None:
        file = grid.authorities / name
        file.write_bytes(grid.authority.revocations([], encoding=encoding))
        context = grid.context()
        async with serving(server_context(grid.server)) as (port, _):
            assert await greeted(port, context) == b"hello"
            file.write_bytes(grid.authority.revocations([grid.certificate], encoding=encoding))
            os.utime(file, ns=(1, 1))
            with pytest.raises(ssl.SSLCertVerificationError) as refused:
                await greeted(port, context)
            assert "server.test is revoked by its authority" in refused.value.verify_message

    run(loop, main())


def test_a_token_endpoint_that_is_revoked_is_refused(grid: Grid) -> None:
    async def main() -> None:
        file = grid.authorities / "grid.r0"
        file.write_bytes(grid.authority.revocations([]))
        context = Tls.model_validate({"ca_path": str(grid.authorities)}).issuer_context()
        async with serving(server_context(grid.server)) as (port, _):
            assert await greeted(port, context) == b"hello"
            file.write_bytes(grid.authority.revocations([grid.certificate]))
            os.utime(file, ns=(1, 1))
            with pytest.raises(ssl.SSLCertVerificationError):
                await greeted(port, context)

    run(Loop, main())


def test_a_certificate_that_cannot_be_looked_up_is_what_openssl_says(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_raw: bytes) -> None:
        raise ValueError("invalid version")

    async def main() -> None:
        (grid.authorities / "grid.r0").write_bytes(grid.authority.revocations([grid.certificate]))
        context = grid.context()
        monkeypatch.setattr("cryptography.x509.load_der_x509_certificate", unreadable)
        async with serving(server_context(grid.server)) as (port, _):
            with capture_logs() as logs:
                assert await greeted(port, context) == b"hello"
        assert [line["detail"] for line in logs] == ["ValueError: invalid version"]

    run(Loop, main())


def test_an_authority_without_a_list_or_with_an_old_or_a_forged_one_is_believed(grid: Grid) -> None:
    revoked = [grid.certificate]
    lists = {
        "other.r0": grid.other.revocations([]),
        "grid.r0": grid.authority.revocations(revoked, until=NOW - HOUR),
        "grid.r1": grid.other.revocations(revoked),
        "grid.r2": b"nothing",
    }

    async def main() -> None:
        for name, raw in lists.items():
            (grid.authorities / name).write_bytes(raw)
        context = grid.context()
        async with serving(server_context(grid.server)) as (port, _):
            with capture_logs() as logs:
                for _ in range(2):
                    assert await greeted(port, context) == b"hello"
        told = sorted(line["detail"].removeprefix(f"{grid.authorities}/") for line in logs)
        assert len(told) == 3, "once each"
        assert told[0].startswith("grid.r0 should have been replaced by ")
        assert told[1:] == [f"grid.r{n} is no revocation list of its authority" for n in (1, 2)]

    run(Loop, main())


def of_kafka(authority: Path, certificate: Path) -> ssl.SSLContext:
    return ssl_context(TlsConfig.model_validate({"ca_file": str(authority), "cert_file": str(certificate)}))


@loops
def test_a_renewed_certificate_is_shown_from_the_next_connection_on(
    tmp_path: Path, loop: LoopFactory
) -> None:
    authority = Authority("CA")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "server.pem").write_bytes(authority.issue("server.test")[1])
    ours = tmp_path / "ours.pem"
    ours.write_bytes(authority.issue("old")[1])

    async def main() -> None:
        context = of_kafka(tmp_path / "ca.pem", ours)
        async with serving(server_context(tmp_path / "server.pem", authority)) as (port, names):
            assert await greeted(port, context) == b"hello"
            ours.write_bytes(b"-----BEGIN CERT")  # while it is being written
            os.utime(ours, ns=(1, 1))
            with capture_logs() as logs:
                assert await greeted(port, context) == b"hello"
            assert "can't be read again" in logs[0]["detail"]
            ours.write_bytes(authority.issue("new")[1])
            os.utime(ours, ns=(2, 2))
            assert await greeted(port, context) == b"hello"
        assert names == ["old", "old", "new"]

    run(loop, main())
