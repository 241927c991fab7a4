"""What `type: kafka` takes in the configuration."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, SecretStr, model_validator

from bridge.net.certificates import OwnCertificate
from bridge.sources.opening import OpeningConfig
from bridge.sources.storage_events import Open
from bridge.values import (
    ClientTls,
    Model,
    ReadableFile,
    Seconds,
    SecretFile,
    Tls,
    address,
    addresses,
    needs,
    one_at_most,
    secret,
)

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in {".", ".."}:
        raise ValueError(f"expected a topic name of letters, digits, '.', '_' and '-', found {value!r}")
    return value


def whole(pattern: str) -> str:
    """Make a pattern that matches whole names of one that aiokafka would match their beginnings with."""
    return rf"(?:{pattern})\Z"


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    try:
        re.compile(whole(value))  # as it is used
    except re.error as error:
        raise ValueError(
            f"expected a regular expression that can stand within a group, such as (?i:uploads): {error}"
        ) from None
    return value


class TlsConfig(ClientTls):
    """Whom to trust and who we are. Files are read at each connecting, so renewed ones are taken up."""

    truststore_file: ReadableFile | None = None
    """PKCS#12 with the trusted certificates, instead of `ca_file` and `ca_path`."""
    truststore_password: SecretStr | None = None
    truststore_password_file: SecretFile | None = None
    key_password: SecretStr | None = None
    key_password_file: SecretFile | None = None
    pkcs12_file: ReadableFile | None = None
    """The client certificate, its chain and key, instead of `cert_file`."""
    pkcs12_password: SecretStr | None = None
    pkcs12_password_file: SecretFile | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("truststore_password", "key_password", "pkcs12_password"):
            one_at_most(self, name, f"{name}_file")
        one_at_most(self, "ca_file", "truststore_file")
        one_at_most(self, "ca_path", "truststore_file")
        if self.truststore_file is not None and not self.verify:
            raise ValueError("`truststore_file` means nothing with `verify: false`; remove one or the other")
        one_at_most(self, "cert_file", "pkcs12_file")
        for name, owner in (
            ("truststore_password", "truststore_file"),
            ("key_password", "cert_file"),
            ("pkcs12_password", "pkcs12_file"),
        ):
            needs(self, name, owner)
            needs(self, f"{name}_file", owner)
        return self

    def own_certificate(self) -> OwnCertificate | None:
        if self.pkcs12_file is None:
            return super().own_certificate()
        return OwnCertificate(
            self.pkcs12_file, lambda: secret(self.pkcs12_password, self.pkcs12_password_file)
        )


class OAuthConfig(Model):
    """Where the token of SASL OAUTHBEARER comes from: a file, or client credentials (RFC 6749, 4.4)."""

    token_file: SecretFile | None = None
    """Read again at each connecting."""
    token_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    client_id: str | None = None
    client_secret: SecretStr | None = None
    client_secret_file: SecretFile | None = None
    scope: str | None = None
    tls: Tls | None = None
    """Whom to believe to be the token endpoint; the system's authorities when not given."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.token_file is None) == (self.token_endpoint is None):
            raise ValueError("expected exactly one of token_file and token_endpoint")
        one_at_most(self, "client_secret", "client_secret_file")
        if self.token_endpoint is not None and (
            self.client_id is None or (self.client_secret is None and self.client_secret_file is None)
        ):
            raise ValueError(
                "expected client_id and client_secret (or client_secret_file) with token_endpoint"
            )
        for name in ("client_id", "client_secret", "client_secret_file", "scope", "tls"):
            needs(self, name, "token_endpoint")
        return self


class KafkaConfig(OpeningConfig):
    """Reads topics of a Kafka cluster as a member of a consumer group."""

    type: Literal["kafka"]
    bootstrap_servers: Annotated[
        tuple[Annotated[str, AfterValidator(address("kafka:9092"))], ...],
        BeforeValidator(addresses),
        Field(min_length=1),
    ]
    """`HOST:PORT`, several as a list or with commas."""
    topics: tuple[Annotated[str, AfterValidator(_topic)], ...] = ()
    topic_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Instead of `topics`: a regular expression that matches whole topic names."""
    group_id: str = Field(min_length=1)
    group_instance_id: str | None = Field(default=None, min_length=1)
    """A member's own lasting name: a restart within `session_timeout` moves no partition (KIP-345)."""
    client_id: str = Field(default="oscar-bridge", min_length=1)
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a partition begins that the group has no committed offset for."""
    start_at: AwareDatetime | None = None
    """Instead of `auto_offset_reset`: begin with the first record at or after this time."""
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    session_timeout: Seconds = 30.0
    """A member that was killed keeps its partitions this long."""
    max_poll_interval: Seconds = 300.0
    """A member that reads nothing this long is taken for dead. A full bridge still counts as reading."""
    metadata_max_age: Seconds = 30.0
    """How soon new topics and partitions are seen."""
    open: Open = "none"
    """Which records are opened. By default none, as it was before there was this key: a record that is opened
    has another id, and so another job, than it had before."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    tls: TlsConfig | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    password_file: SecretFile | None = None
    oauth: OAuthConfig | None = None
    kerberos_service_name: str = "kafka"
    """GSSAPI: the first part of the broker's principal."""
    kerberos_domain_name: str | None = None
    """GSSAPI: the host part of the broker's principal; the broker's host name when not given."""

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if bool(self.topics) == (self.topic_pattern is not None):
            raise ValueError("expected exactly one of topics and topic_pattern")
        if self.start_at is not None and "auto_offset_reset" in self.model_fields_set:
            raise ValueError("expected one of start_at and auto_offset_reset, not both")
        return self

    @model_validator(mode="after")
    def _is_secured_one_way(self) -> Self:
        if self.tls is not None and not self.security_protocol.endswith("SSL"):
            raise ValueError(f"tls is given, so expected security_protocol {_with_tls(self)}")
        if not self.security_protocol.startswith("SASL"):
            for name in ("sasl_mechanism", "username", "password", "password_file", "oauth"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is given, so expected security_protocol {_with_sasl(self)}")
            return self
        if self.sasl_mechanism is None:
            raise ValueError(f"expected sasl_mechanism with security_protocol {self.security_protocol}")
        named = self.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        one_at_most(self, "password", "password_file")
        if named and (self.username is None or (self.password is None and self.password_file is None)):
            raise ValueError(
                f"expected username and password (or password_file) with sasl_mechanism {self.sasl_mechanism}"
            )
        if not named and (self.username is not None or self.password is not None or self.password_file):
            raise ValueError(f"sasl_mechanism {self.sasl_mechanism} takes no username and no password")
        if (self.sasl_mechanism == "OAUTHBEARER") != (self.oauth is not None):
            raise ValueError("expected oauth with sasl_mechanism OAUTHBEARER, and with no other")
        if self.sasl_mechanism == "GSSAPI" and find_spec("gssapi") is None:
            raise ValueError(
                "sasl_mechanism GSSAPI needs the extra: pip install 'oscar-event-bridge[kerberos]'"
            )
        return self

    def own_certificate(self) -> OwnCertificate | None:
        return None if self.tls is None else self.tls.own_certificate()


def _with_tls(config: KafkaConfig) -> str:
    return "SASL_SSL" if config.security_protocol == "SASL_PLAINTEXT" else "SSL"


def _with_sasl(config: KafkaConfig) -> str:
    return "SASL_SSL" if config.security_protocol == "SSL" else "SASL_PLAINTEXT or SASL_SSL"
