"""Every client that speaks HTTP: the same proxy, no password that nobody configured, and answers that end."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import bridge
from bridge.core.errors import SourceLost
from bridge.core.ports import Patience
from bridge.destinations.oscar.check import check as check_cluster
from bridge.sources.dcache.check import check as check_dcache
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.rest.answers import Unanswered
from bridge.sources.dcache.rest.connection import Connection
from bridge.sources.kafka.check import check as check_kafka
from bridge.sources.kafka.config import KafkaConfig, OAuthConfig
from bridge.sources.kafka.security import token_provider
from bridge.sources.sqs.check import check as check_sqs
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import connect
from tests.destinations.fake_oscar import cluster_config, event, service, token

NOWHERE = "http://somewhere.test"
"""Only a proxy can know where that is."""


class Proxy:
    """Takes requests for other hosts, and answers all of them itself."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Request lines."""
        self.told: list[str] = []
        """Headers."""
        self.sent = 0
        self.endless = False
        self.status = "500 Broken"
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            self.asked.append(first)
            self.told += headers
            if self.endless:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                while True:
                    writer.write(b"[" * 65536)
                    self.sent += 65536
                    await writer.drain()
            head = f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Proxy]:
    """The proxy of `ALL_PROXY`, given without a scheme, beside a ~/.netrc with a password for every host."""
    (tmp_path / ".netrc").write_text("default login somebody password of-netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxy = Proxy()
    server = await asyncio.start_server(proxy.answer, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("ALL_PROXY", f"me:word@127.0.0.1:{proxy.port}")
    try:
        yield proxy
    finally:
        server.close()


# Each asks something of `base`, and gives what it tells of the answer.


async def oscar(base: str) -> str:
    async with service(base, {"type": "service-token", "token": token(1)}) as plants:
        return (await plants.prepare(event()).attempt()).detail


async def issuer(base: str) -> str:
    auth = {"type": "oidc", "token_endpoint": f"{base}/token", "client_id": "me", "refresh_token": "r"}
    async with service("http://127.0.0.1:9", auth) as plants:
        return (await plants.prepare(event()).attempt()).detail


def dcache_config(base: str) -> DcacheConfig:
    auth = {"type": "bearer", "token": "t"}
    values = {"type": "dcache", "endpoint": f"{base}/api/v1", "auth": auth, "paths": ["/data"]}
    return DcacheConfig.model_validate(values)


async def dcache(base: str) -> str:
    async with Connection(dcache_config(base)) as connection:
        with pytest.raises(Unanswered) as told:
            await connection.limits()
    return str(told.value)


async def dcache_stream(base: str) -> str:
    async with Connection(dcache_config(base)) as connection:
        with pytest.raises(Unanswered) as told:
            async with connection.stream("c", None, silence=10):
                pass
    return str(told.value)


async def queue(base: str) -> str:
    values = {"type": "sqs", "queue": "q", "region": "eu-west-1", "endpoint_url": base}
    keys = {"access_key_id": "a", "secret_access_key": "s"}
    with pytest.raises(SourceLost) as told:
        async with connect(SqsConfig.model_validate({**values, **keys})):
            pass
    return str(told.value)


async def kafka_issuer(base: str) -> str:
    config = OAuthConfig.model_validate(
        {"token_endpoint": f"{base}/token", "client_id": "me", "client_secret": "s"}
    )
    with pytest.raises(Exception, match="no access token") as told:
        await token_provider(config).token()
    return str(told.value)


Ask = Callable[[str], Awaitable[str]]
CLIENTS = [oscar, issuer, dcache, dcache_stream, queue, kafka_issuer]
clients = pytest.mark.parametrize("ask", CLIENTS)


@clients
async def test_a_proxy_is_asked_and_no_password_is_taken_from_netrc(proxy: Proxy, ask: Ask) -> None:
    await ask(NOWHERE)
    assert proxy.asked
    assert all(f" {NOWHERE}/" in line for line in proxy.asked)
    assert "Proxy-Authorization: Basic bWU6d29yZA==" in proxy.told
    for login in ("c29tZWJvZHk6b2YtbmV0cmM=", "of-netrc"):
        assert not any(login in header for header in proxy.told)


@clients
async def test_no_proxy_with_a_port_is_obeyed(
    proxy: Proxy, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "somewhere.test:80")
    await ask(NOWHERE)
    assert not proxy.asked


@clients
async def test_a_proxy_that_refuses_is_told_without_its_password(
    proxy: Proxy, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.status = "407 Proxy Authentication Required"
    caplog.set_level("INFO")
    with capture_logs() as logs:
        told = await ask("https://somewhere.test")
    assert "CONNECT somewhere.test:443 HTTP/1.1" in proxy.asked
    assert "407" in told or "roxy" in told
    for text in (told, str(logs), caplog.text):
        assert "word" not in text.replace("password", "")


async def test_check_tells_the_proxy_before_each(proxy: Proxy) -> None:
    """It gives those problems too, since that proxy leads nowhere."""
    oidc = {"type": "oidc", "token_endpoint": f"{NOWHERE}/token", "client_id": "me", "refresh_token": "r"}
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
    oauth = {"token_endpoint": f"{NOWHERE}/token", "client_id": "me", "client_secret": "s"}
    kafka = {"type": "kafka", "bootstrap_servers": "127.0.0.1:9", "topics": ["t"], "group_id": "g"}
    sqs = {"type": "sqs", "queue": "q", "region": "eu-west-1", "endpoint_url": NOWHERE}
    keys = {"access_key_id": "a", "secret_access_key": "s"}
    patience = Patience(attempt=1, unsettled=1)
    told = f"somewhere.test is reached through the proxy http://127.0.0.1:{proxy.port}"
    for found in (
        await check_cluster("main", cluster_config(NOWHERE), {}),
        await check_cluster("main", cluster_config("http://127.0.0.1:9", oidc), {}),
        await check_dcache(dcache_config(NOWHERE), "arrivals", patience),
        await check_kafka(KafkaConfig.model_validate({**kafka, **sasl, "oauth": oauth}), "uploads", patience),
        await check_sqs(SqsConfig.model_validate({**sqs, **keys}), "bucket", patience),
    ):
        assert [one.message for one in found].count(told) == 1
        assert "word" not in str(found)


@pytest.mark.parametrize("ask", [queue, kafka_issuer, issuer])
async def test_an_answer_without_end_is_not_read_to_the_end(proxy: Proxy, ask: Ask) -> None:
    proxy.endless = True
    await ask(NOWHERE)
    assert proxy.sent < 32 << 20, "what the sockets' buffers hold beside it"


def calls() -> list[tuple[str, str, dict[str | None, str]]]:
    """Every call in the bridge's own code: file and line, what is called, keywords."""
    root = Path(bridge.__file__).parent
    return [
        (
            f"{file.relative_to(root)}:{node.lineno}",
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        for file in root.rglob("*.py")
        if "sandbox" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_no_client_takes_its_proxy_or_a_password_from_the_environment_by_itself() -> None:
    found = calls()
    assert not [where for where, _, keywords in found if keywords.get("trust_env", "False") != "False"]
    assert not [where for where, called, _ in found if called in ("getproxies", "proxy_bypass")]
