"""What `clusters:` holds, and the destination's part of `services:`."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from bridge.destinations.oscar.payload import MAX_EVENT_BYTES, MAX_INTERLINK_BYTES, Mode
from bridge.values import Bytes, Directory, Model, ReadableFile, Seconds

EGI_TOKEN_ENDPOINT = "https://aai.egi.eu/auth/realms/egi/protocol/openid-connect/token"  # noqa: S105 - a URL
"""Token endpoint of EGI Check-in, the issuer OSCAR's own clients use by default."""
EGI_SCOPES = "openid email profile voperson_id eduperson_entitlement"


def _http_url(value: str) -> str:
    try:
        url = urlsplit(value)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        raise ValueError("expected a URL such as https://oscar.example.org") from None
    if url.scheme not in ("http", "https") or not url.hostname or not port_fits:
        raise ValueError("expected a URL such as https://oscar.example.org")
    if url.username is not None or url.password is not None:
        raise ValueError("expected a URL without credentials: they belong under `auth`")
    if url.query or url.fragment or value.endswith(("?", "#")):
        raise ValueError("expected a URL without `?query` and `#fragment`")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]
"""An http or https URL, perhaps with a path, without its last slash."""
Secret = Annotated[SecretStr, Field(min_length=1)]


def _exactly_one(model: Model, key: str) -> None:
    if (getattr(model, key) is None) == (getattr(model, f"{key}_file") is None):
        given = "both are" if getattr(model, key) is not None else "neither is"
        raise ValueError(f"expected exactly one of `{key}` and `{key}_file`, but {given} given")


class BasicAuth(Model):
    """The cluster's own user: reads each service's token from its definition."""

    type: Literal["basic"]
    username: str = Field(min_length=1, pattern=r"^[^:]*$")  # RFC 7617: no colon in a user's name
    password: Secret | None = None
    password_file: ReadableFile | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        _exactly_one(self, "password")
        return self


class ServiceTokenAuth(Model):
    """One service's token, known beforehand. It opens `/job` and `/run` only, not the management API."""

    type: Literal["service-token"]
    token: Secret | None = None
    token_file: ReadableFile | None = None
    """Read again whenever the token is refused: the file may have been replaced."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        _exactly_one(self, "token")
        return self


class OidcAuth(Model):
    """Access tokens by the refresh-token grant (RFC 6749, section 6)."""

    type: Literal["oidc"]
    refresh_token: Secret | None = None
    refresh_token_file: ReadableFile | None = None
    token_endpoint: HttpUrl = EGI_TOKEN_ENDPOINT
    client_id: str = Field(min_length=1)
    client_secret: Secret | None = None
    client_secret_file: ReadableFile | None = None
    """For a confidential client; EGI Check-in's refresh tokens are a public client's."""
    scopes: str = Field(default=EGI_SCOPES, min_length=1)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        _exactly_one(self, "refresh_token")
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("expected at most one of `client_secret` and `client_secret_file`")
        return self


def _agent_socket() -> Path | None:
    path = os.environ.get("OIDC_SOCK")
    return Path(path) if path else None


class OidcAgentAuth(Model):
    """Access tokens from an oidc-agent that runs on this machine."""

    type: Literal["oidc-agent"]
    account: str = Field(min_length=1)
    """The account's short name, as `oidc-add` knows it."""
    socket: Path | None = Field(default_factory=_agent_socket)

    @model_validator(mode="after")
    def _has_a_socket(self) -> Self:
        if self.socket is None:
            raise ValueError("expected `socket`, the path of the agent's socket, since OIDC_SOCK is not set")
        return self


Auth = Annotated[
    BasicAuth | ServiceTokenAuth | OidcAuth | OidcAgentAuth,
    Field(discriminator="type"),
]


class Tls(Model):
    """Whom to believe. With neither file nor directory: the system's certificate authorities."""

    ca_file: ReadableFile | None = None
    ca_path: Directory | None = None
    """A directory of certificates in PEM, hashed or plain, such as IGTF's /etc/grid-security/certificates."""
    verify: bool = True

    @model_validator(mode="after")
    def _loads(self) -> Self:
        if self.ca_file is None and self.ca_path is None:
            return self
        if not self.verify:
            raise ValueError(
                "`ca_file` and `ca_path` mean nothing with `verify: false`; remove one or the other"
            )
        self.trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return self

    def trust(self, context: ssl.SSLContext) -> None:
        """Load the authorities given into `context`. Raises ValueError when a file or directory has none."""
        if self.ca_file is not None:
            try:
                context.load_verify_locations(cafile=self.ca_file)
            except ssl.SSLError:
                raise ValueError(f"expected certificates in PEM, but {self.ca_file} has none") from None
        if self.ca_path is not None and not _trust_directory(context, self.ca_path):
            raise ValueError(f"expected files with certificates in PEM, but {self.ca_path} has none")

    def context(self) -> ssl.SSLContext:
        """Make the context for the cluster's endpoint."""
        if self.ca_file is None and self.ca_path is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.trust(context)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _trust_directory(context: ssl.SSLContext, directory: Path) -> int:
    """Load every certificate of a directory; OpenSSL's own reading would see hashed names alone."""
    loaded = 0
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".pem", ".crt", ".cer") and not path.suffix[1:].isdigit():
            continue
        try:
            text = path.read_text(encoding="ascii", errors="ignore")
            context.load_verify_locations(cadata=text[text.index("-----BEGIN CERTIFICATE-----") :])
        except (OSError, ValueError, ssl.SSLError):
            continue  # a dangling link, a key, a revoked authority's remains: the others still count
        loaded += 1
    return loaded


class ClusterConfig(Model):
    """One OSCAR cluster, `clusters.{key}`."""

    endpoint: HttpUrl
    """Where `/job`, `/run` and `/system` are; a path in front of them is kept."""
    auth: Auth
    tls: Tls = Tls()


class ServiceConfig(Model):
    """What the OSCAR destination must know of a service, `services.{key}`; the lane has its own part."""

    cluster: str = Field(min_length=1)
    """Key of the cluster."""
    service: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    """OSCAR's name of it; the key when not given."""
    mode: Literal["job", "run"] = "job"
    owner: str | None = Field(default=None, min_length=1)
    """Whose service, where one name has several owners."""
    interlink: bool = False
    """Offloaded through interLink: the limit on an event is smaller."""
    timeout_seconds: Seconds = 30.0
    max_event_bytes: Bytes | None = None
    """Of the encoded value; the most that the service can start with when not given (see `event_bytes`)."""
    payload: Mode = "auto"
    idempotent: bool = False
    """For `mode: run`: a second run of one event does no harm, so a lost answer means another attempt."""

    @model_validator(mode="after")
    def _can_start(self) -> Self:
        most = MAX_INTERLINK_BYTES if self.interlink else MAX_EVENT_BYTES
        if self.max_event_bytes is not None and self.max_event_bytes > most:
            why = (
                "interLink carries the event as base64" if self.interlink else "Linux starts no job with more"
            )
            raise ValueError(f"expected `max_event_bytes` of at most {most}: {why}")
        return self

    @model_validator(mode="after")
    def _idempotent_runs(self) -> Self:
        if self.idempotent and self.mode == "job":
            raise ValueError("`idempotent` is for `mode: run`; a job has its identity, so remove it")
        return self

    @property
    def event_bytes(self) -> int:
        """The limit on the encoded event, in bytes."""
        return self.max_event_bytes or (MAX_INTERLINK_BYTES if self.interlink else MAX_EVENT_BYTES)

    def identity(self, key: str) -> str:
        """Give the service's part of an invocation identity; `key` is its own in `services`.

        OSCAR's name, with the owner where one is given: two services of one name have jobs of their own.
        """
        name = self.service or key
        return name if self.owner is None else f"{self.owner}/{name}"
