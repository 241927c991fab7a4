"""Our own certificate: how long it is good, and what others say of it."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import NoEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from structlog.testing import capture_logs

from bridge.core.errors import CredentialError, no_descriptors
from bridge.core.ports import Findings, Patience, Severity
from bridge.net import certificates
from bridge.net.certificates import OwnCertificate, Watch, refusal
from bridge.net.reach import reach
from bridge.sources import SourceConfig
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.registry import kind_of
from bridge.sources.rucio.config import RucioConfig
from bridge.testing import until
from tests.check.findings import said
from tests.net.authority import HOUR, NOW, Authority, refusing, server_context

YEAR = timedelta(days=365)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("CA")


@pytest.mark.parametrize(
    ("begins", "ends", "severity", "words"),
    [
        (NOW - HOUR, NOW + 11 * HOUR, Severity.OK, "is valid until"),
        (NOW - 11 * HOUR, NOW + HOUR, Severity.WARNING, "expires soon, on"),
        (NOW - YEAR, NOW + timedelta(days=20), Severity.OK, "is valid until"),
        (NOW - YEAR, NOW + timedelta(days=13), Severity.WARNING, "expires soon, on"),
        (NOW - 12 * HOUR, NOW - HOUR, Severity.PROBLEM, "expired on"),
        (NOW + HOUR, NOW + 12 * HOUR, Severity.PROBLEM, "is not valid before"),
    ],
)
def test_a_certificate_is_told_with_its_file_and_date(
    authority: Authority, tmp_path: Path, begins: object, ends: object, severity: Severity, words: str
) -> None:
    file = tmp_path / "ours.pem"
    file.write_bytes(authority.issue("me", begins, ends)[1])  # type: ignore[arg-type] # parameters
    validity, found, message = OwnCertificate(file).look()
    assert found is severity
    date = begins if words.endswith("before") else ends
    assert message.startswith(f"our certificate {file} {words} {date:%Y-%m-%d %H:%M} UTC")
    assert validity is not None
    assert validity.ends == int(ends.timestamp())  # type: ignore[attr-defined] # likewise


def test_a_proxy_is_as_good_as_the_certificate_that_signed_it(authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "proxy.pem"
    _, proxy = authority.issue("proxy")
    _, user = authority.issue("user", ends=NOW + 2 * HOUR)
    file.write_bytes(proxy + user)  # and the authority in it, which may be older than both
    validity = OwnCertificate(file).validity()
    assert validity.ends == int((NOW + 2 * HOUR).timestamp())


def test_a_certificate_in_pkcs12_is_read_with_its_password(authority: Authority, tmp_path: Path) -> None:
    certificate, pem = authority.issue("me")
    key = load_pem_private_key(pem, None)
    file = tmp_path / "ours.p12"
    file.write_bytes(
        serialize_key_and_certificates(b"me", key, certificate, [authority.certificate], NoEncryption())  # type: ignore[arg-type] # an EC key
    )
    own = OwnCertificate(file, lambda: None)
    assert own.validity().ends == certificate.not_valid_after_utc.timestamp()

    def unreadable() -> str:
        raise CredentialError("secret file /x can't be read")

    _, severity, message = OwnCertificate(file, unreadable).look()
    assert (severity, "secret file /x can't be read" in message) == (Severity.PROBLEM, True)


@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ours.pem"
    if content is not None:
        file.write_bytes(content)
    validity, severity, message = OwnCertificate(file).look()
    assert (validity, severity) == (None, Severity.PROBLEM)
    assert message.startswith(f"our certificate {file} can't be read: ")


async def test_a_watch_sees_it_expire_and_be_renewed(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.01)
    file = tmp_path / "ours.pem"
    file.write_bytes(authority.issue("me", ends=NOW - timedelta(seconds=60))[1])
    watch = Watch({"source arrivals": OwnCertificate(file)})
    assert math.isnan(watch.seconds_left("source arrivals"))
    assert watch.lifetime("source arrivals") is None
    with capture_logs() as logs:
        running = asyncio.create_task(watch.run())
        await until(lambda: watch.problems("source arrivals"))
        assert watch.seconds_left("source arrivals") < -59
        file.write_bytes(authority.issue("me")[1])
        await until(lambda: not watch.problems("source arrivals"))
        assert watch.seconds_left("source arrivals") > 3600
        assert (watch.lifetime("source arrivals") or 0) > watch.seconds_left("source arrivals")
        running.cancel()
    assert [(line["log_level"], line["part"]) for line in logs] == [("error", "source arrivals")], "once"
    assert str(file) in logs[0]["detail"]


async def said_hello(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"hello")
        await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("case", ["expired", "unknown", "none"])
async def test_what_a_server_says_of_our_certificate_is_not_taken_for_a_fault_of_its_own(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion, case: str
) -> None:
    server, ours, stranger = tmp_path / "server.pem", tmp_path / "ours.pem", Authority("Stranger")
    server.write_bytes(authority.issue("server.test")[1])
    ours.write_bytes(authority.issue("me", NOW - 12 * HOUR, NOW - HOUR)[1])
    context = server_context(server, stranger if case == "unknown" else authority)
    context.minimum_version = context.maximum_version = version
    client = ssl.create_default_context(cadata=authority.pem.decode())
    if case != "none":
        client.load_cert_chain(ours)
    words = {"expired": "it has expired", "unknown": "it does not know the authority", "none": ""}[case]

    async with refusing(context) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises((aiohttp.ClientError, OSError)) as by_aiohttp:
            async with aiohttp.ClientSession() as session, session.get(url, ssl=client):
                pass
        with pytest.raises(OSError) as by_streams:
            await said_hello(port, client)
        findings = Findings("x")
        reached = await reach(findings, "127.0.0.1", port, client, address_key="a", ca_key="ca_file")
    for error in (by_aiohttp.value, by_streams.value):
        told = refusal(error)
        if case == "none" and version is ssl.TLSVersion.TLSv1_2:
            continue  # an alert of the handshake, which says no more
        assert told is not None
        assert words in told
    if version is ssl.TLSVersion.TLSv1_2:
        assert not reached
        said(findings.found, "problem", words, remedy="client certificate")
    assert not any("authority that signed it into" in finding.remedy for finding in findings.found)


def kafka(tls: dict[str, str], port: int) -> SourceConfig:
    values = {"bootstrap_servers": f"127.0.0.1:{port}", "topics": ["t"], "group_id": "g"}
    return KafkaConfig.model_validate({"type": "kafka", "security_protocol": "SSL", "tls": tls, **values})


def rucio(tls: dict[str, str], port: int) -> SourceConfig:
    values = {"protocol": "stomp", "brokers": f"127.0.0.1:{port}", "destination": "/queue/q"}
    return RucioConfig.model_validate({"type": "rucio", "tls": tls, **values})


def dcache(tls: dict[str, str], port: int) -> SourceConfig:
    auth = {"type": "x509", "cert_file": tls["cert_file"]}
    values = {"endpoint": f"https://127.0.0.1:{port}/api/v1", "paths": ["/data"], "auth": auth}
    return DcacheConfig.model_validate({"type": "dcache", "tls": {"ca_file": tls["ca_file"]}, **values})


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("make", [kafka, rucio, dcache])
async def test_check_blames_our_certificate_and_not_the_authority_of_the_server(
    authority: Authority,
    tmp_path: Path,
    make: Callable[[dict[str, str], int], SourceConfig],
    version: ssl.TLSVersion,
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "server.pem").write_bytes(authority.issue("server.test")[1])
    (tmp_path / "ours.pem").write_bytes(authority.issue("me", NOW - 12 * HOUR, NOW - HOUR)[1])
    context = server_context(tmp_path / "server.pem", authority)
    context.minimum_version = context.maximum_version = version
    async with refusing(context) as port:
        config = make({"ca_file": str(tmp_path / "ca.pem"), "cert_file": str(tmp_path / "ours.pem")}, port)
        found = await kind_of(config).check(config, "x", Patience(attempt=1, unsettled=1))
    said(found, "problem", "refuses our certificate: it has expired", remedy="client certificate")
    assert not any("authority that signed it into" in finding.remedy for finding in found)


def test_other_failures_are_not_about_our_certificate() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: certificate has expired")
    assert refusal(error) is None
    assert refusal(ConnectionResetError("reset")) is None
    assert refusal("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired (_ssl.c:2580)")


def test_an_error_that_came_of_itself_has_an_end() -> None:
    first, second = OSError("first"), OSError("second")
    first.__context__, second.__context__ = second, first
    assert refusal(first) is None
    assert not no_descriptors(first)
