"""What `clusters:` holds, and the destination's part of `services:`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bridge.credentials import BasicAuth, OidcAuth
from bridge.destinations.oscar.payload import MAX_EVENT_BYTES, MAX_INTERLINK_BYTES, Mode
from bridge.values import Bytes, HttpUrl, Model, Seconds, Secret, SecretFile, Tls, exactly_one


class ServiceTokenAuth(Model):
    """One service's token, known beforehand. It opens `/job` and `/run` only, not the management API."""

    type: Literal["service-token"]
    token: Secret | None = None
    token_file: SecretFile | None = None
    """Read again whenever the token is refused: the file may have been replaced."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        exactly_one(self, "token")
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
    success: Literal["phase", "output"] = "phase"
    """What makes a job that was followed one that succeeded: its pod's phase, or an output beside that."""
    idempotent: bool = False
    """For `mode: run`: a second run of one event does no harm, so a lost answer means another attempt."""
    reads_all_records: bool = False
    """Whether its script reads all records of an S3 notification. faas-supervisor reads the first alone."""

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

    @model_validator(mode="after")
    def _reaches_pods(self) -> Self:
        if self.interlink and self.mode == "run":
            raise ValueError(
                "an offloaded service (`interlink: true`) has no /run, since OSCAR makes no Knative service "
                "of it: use `mode: job`"
            )
        return self

    @property
    def event_bytes(self) -> int:
        """The limit on the encoded event, in bytes."""
        return self.max_event_bytes or (MAX_INTERLINK_BYTES if self.interlink else MAX_EVENT_BYTES)

    def identity(self, key: str) -> str:
        """Return the service's part of an invocation identity; `key` is its own in `services`.

        OSCAR's name, with the owner where one is given: two services of one name have jobs of their own.
        """
        name = self.service or key
        return name if self.owner is None else f"{self.owner}/{name}"
