from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import trustme
from aiohttp import encode_basic_auth, web
from aiokafka.errors import KafkaConnectionError
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from pydantic import ValidationError

from bridge.core.errors import CredentialError
from bridge.sources.kafka.config import KafkaConfig, OAuthConfig, TlsConfig
from bridge.sources.kafka.security import ssl_context, token_provider
from bridge.sources.kafka.source import KafkaSource
from bridge.telemetry.metrics import Metrics
from bridge.testing import keeping

SASL = {"security_protocol": "SASL_SSL"}
LOGIN = {"username": "u", "password": "p"}


def config(**changes: Any) -> KafkaConfig:
    values: dict[str, Any] = {
        "type": "kafka",
        "bootstrap_servers": "kafka:9092",
        "topics": ["uploads"],
        "group_id": "oscar",
        **changes,
    }
    return KafkaConfig.model_validate({name: value for name, value in values.items() if value is not None})


def test_the_short_form_reads_all_that_is_committed_from_the_earliest() -> None:
    made = config(bootstrap_servers="a:9092, [::1]:9093")
    assert made.bootstrap_servers == ("a:9092", "[::1]:9093")
    assert made.auto_offset_reset == "earliest"
    assert made.isolation_level == "read_committed"
    assert config(bootstrap_servers=["a:1", "b:2"]).bootstrap_servers == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"topic_pattern": "up.*"}, "exactly one of topics and topic_pattern"),
        ({"topics": None}, "exactly one of topics and topic_pattern"),
        ({"topics": None, "topic_pattern": "("}, "expected a regular expression"),
        ({"topics": None, "topic_pattern": "(?i)uploads"}, r"within a group, such as \(\?i:uploads\)"),
        ({"topics": ["a b"]}, "expected a topic name"),
        ({"bootstrap_servers": "kafka"}, "expected HOST:PORT"),
        ({"bootstrap_servers": "kafka:99999"}, "expected HOST:PORT"),
        ({"bootstrap_servers": "kafka://kafka:9092"}, "expected HOST:PORT"),
        ({"bootstrap_servers": []}, "at least 1 item"),
        ({"group_instance_id": ""}, "at least 1 character"),
        ({"start_at": "2024-01-01T00:00:00Z", "auto_offset_reset": "latest"}, "start_at"),
        ({"start_at": "2024-01-01T00:00:00"}, "timezone"),
        ({"tls": {}}, "expected security_protocol SSL"),
        ({"security_protocol": "SASL_PLAINTEXT", "tls": {}}, "expected security_protocol SASL_SSL"),
        ({"sasl_mechanism": "PLAIN", **LOGIN}, "SASL_PLAINTEXT or SASL_SSL"),
        ({"security_protocol": "SSL", **LOGIN}, "expected security_protocol SASL_SSL"),
        (SASL, "expected sasl_mechanism"),
        ({**SASL, "sasl_mechanism": "SCRAM-SHA-512"}, "expected username and password"),
        ({**SASL, "sasl_mechanism": "PLAIN", "username": "u"}, "expected username and password"),
        ({**SASL, "sasl_mechanism": "OAUTHBEARER"}, "expected oauth"),
        ({**SASL, "sasl_mechanism": "OAUTHBEARER", **LOGIN}, "takes no username"),
        (
            {**SASL, "sasl_mechanism": "PLAIN", **LOGIN, "oauth": {"token_endpoint": "http://x"}},
            "expected client_id",
        ),
        (
            {**SASL, "sasl_mechanism": "OAUTHBEARER", "oauth": {}},
            "exactly one of token_file and token_endpoint",
        ),
        ({"security_protocol": "SSL", "tls": {"key_password": "x"}}, "expected cert_file too"),
        ({"security_protocol": "SSL", "tls": {"ca_file": "/nowhere"}}, "expected a readable file"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        config(**changes)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_mechanisms_with_a_password_are_taken(mechanism: str) -> None:
    assert config(**SASL, sasl_mechanism=mechanism, **LOGIN).sasl_mechanism == mechanism


def test_the_client_library_is_loaded_only_by_who_builds_a_kafka_source() -> None:
    code = "import sys, bridge.sources.kafka.config; sys.exit('aiokafka' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_static_members_name_reaches_the_client() -> None:
    # Joining with one takes tansu 6 s, and librdkafka's mock cluster 7 s.
    told = config(group_instance_id="replica-0")
    static = KafkaSource(told, "uploads", Metrics().source("uploads"), keeping().lost)
    assert static._options()["group_instance_id"] == "replica-0"


class Identity:
    """A client certificate with its authority, as the files an operator has."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("client.example")
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        chain = [x509.load_pem_x509_certificate(pem.bytes()) for pem in issued.cert_chain_pems]
        root = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        self.store, self.trust = folder / "client.p12", folder / "trust.p12"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.key))
        self.store.write_bytes(
            pkcs12.serialize_key_and_certificates(
                b"client",
                key,  # type: ignore[arg-type] # trustme makes keys that PKCS#12 takes
                chain[0],
                chain[1:],
                BestAvailableEncryption(b"secret"),
            )
        )
        self.trust.write_bytes(
            pkcs12.serialize_key_and_certificates(None, None, None, [root], BestAvailableEncryption(b"trust"))
        )


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity(tmp_path)


def test_a_truststore_replaces_the_systems_authorities(identity: Identity) -> None:
    context = ssl_context(TlsConfig(truststore_file=identity.trust, truststore_password="trust"))
    [trusted] = context.get_ca_certs()
    assert trusted["subject"]
    assert context.check_hostname
    assert ssl_context(TlsConfig(ca_file=identity.ca)).get_ca_certs() == [trusted]


def test_a_client_certificate_in_pkcs12_leaves_no_file_behind(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    ssl_context(TlsConfig(pkcs12_file=identity.store, pkcs12_password="secret"))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"pkcs12_file": "client.p12", "pkcs12_password": "wrong"},
        {"truststore_file": "trust.p12"},
        {"pkcs12_file": "trust.p12", "pkcs12_password": "trust"},
        {"cert_file": "ca.pem", "key_file": "key.pem"},
    ],
)
def test_unusable_tls_files_are_a_credential_error(
    identity: Identity, tmp_path: Path, wrong: dict[str, str]
) -> None:
    files = {
        name: str(tmp_path / value) if name.endswith("_file") else value for name, value in wrong.items()
    }
    with pytest.raises(CredentialError):
        ssl_context(TlsConfig.model_validate(files))


def test_an_encrypted_key_without_password_does_not_ask_at_the_terminal(
    identity: Identity, tmp_path: Path
) -> None:
    key = load_pem_private_key(identity.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"key")))
    ssl_context(TlsConfig(cert_file=identity.cert, key_file=locked, key_password="key"))
    with pytest.raises(CredentialError):
        ssl_context(TlsConfig(cert_file=identity.cert, key_file=locked))


async def test_a_token_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    provider = token_provider(OAuthConfig(token_file=file))
    assert await provider.token() == "one"
    file.write_text("two")
    assert await provider.token() == "two"
    with pytest.raises(ValidationError, match="tls is given, so expected token_endpoint"):
        OAuthConfig.model_validate({"token_file": file, "tls": {}})
    file.write_text("")
    with pytest.raises(KafkaConnectionError, match="empty"):
        await provider.token()


def test_a_directory_of_authorities_is_believed_and_who_believes_anybody_names_none(
    identity: Identity, tmp_path: Path
) -> None:
    directory = tmp_path / "authorities"
    directory.mkdir()
    (directory / "site.pem").write_bytes(identity.ca.read_bytes())
    [trusted] = ssl_context(TlsConfig(ca_path=directory)).get_ca_certs()
    assert [trusted] == ssl_context(TlsConfig(ca_file=identity.ca)).get_ca_certs()
    anybody = ssl_context(TlsConfig(verify=False, cert_file=identity.cert, key_file=identity.key))
    assert (anybody.verify_mode, anybody.check_hostname) == (ssl.CERT_NONE, False)
    for authorities in ({"ca_file": identity.ca}, {"truststore_file": identity.trust}):
        with pytest.raises(ValidationError, match=r"means? nothing with `verify: false`"):
            TlsConfig.model_validate({**authorities, "verify": False})
    with pytest.raises(ValidationError, match="one of ca_path and truststore_file"):
        TlsConfig(ca_path=directory, truststore_file=identity.trust)
    with pytest.raises(ValidationError, match="expected certificates in PEM"):
        TlsConfig(ca_file=identity.key)


async def test_a_token_endpoint_with_an_authority_of_its_own_is_believed(
    identity: Identity,
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    identity.authority.issue_cert("127.0.0.1").configure_cert(server)
    oauth = {"client_id": "me", "client_secret": "x"}
    async with token_server([web.json_response({"access_token": "t"})], server) as (endpoint, _):
        with pytest.raises(KafkaConnectionError, match="certificate verify failed"):
            await token_provider(OAuthConfig.model_validate({**oauth, "token_endpoint": endpoint})).token()
        believing = {**oauth, "token_endpoint": endpoint, "tls": {"ca_file": identity.ca}}
        assert await token_provider(OAuthConfig.model_validate(believing)).token() == "t"


@asynccontextmanager
async def token_server(
    answers: list[web.Response], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        asked.append({**form, "login": request.headers.get("Authorization", "")})
        return answers.pop(0)

    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"http{'s' * (tls is not None)}://127.0.0.1:{runner.addresses[0][1]}/token", asked
    finally:
        await runner.cleanup()


async def test_client_credentials_are_used_until_shortly_before_their_end() -> None:
    answers = [
        web.json_response({"access_token": "short", "expires_in": 20}),
        web.json_response({"access_token": "long", "expires_in": 3600}),
    ]
    async with token_server(answers) as (endpoint, asked):
        provider = token_provider(
            OAuthConfig(token_endpoint=endpoint, client_id="me", client_secret="a b", scope="kafka")
        )
        assert [await provider.token() for _ in range(3)] == ["short", "long", "long"]
    assert asked[0] == {
        "grant_type": "client_credentials",
        "scope": "kafka",
        "login": encode_basic_auth("me", "a+b"),
    }


@pytest.mark.parametrize("text", ["[" * 100_000, f'{{"access_token": "t", "expires_in": {10**400}}}'])
async def test_an_answer_that_is_no_grant_is_no_end_of_the_client(text: str) -> None:
    async with token_server([web.Response(text=text)]) as (endpoint, _):
        provider = token_provider(OAuthConfig(token_endpoint=endpoint, client_id="me", client_secret="x"))
        with pytest.raises(KafkaConnectionError, match="no access token"):
            await provider.token()


async def test_a_refused_grant_tells_why() -> None:
    async with token_server([web.Response(status=401, text="invalid_client")]) as (endpoint, _):
        provider = token_provider(OAuthConfig(token_endpoint=endpoint, client_id="me", client_secret="x"))
        with pytest.raises(KafkaConnectionError, match="401: invalid_client"):
            await provider.token()
