"""What `type: rucio` takes in the configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.core.event import Event
from bridge.core.ports import Finding, Patience, Source
from bridge.net.certificates import OwnCertificate
from bridge.net.tls import Context
from bridge.sources import Keeping, NoEvent, SourceConfig
from bridge.sources.rucio.message import Unreadable, Unwanted, read
from bridge.telemetry.metrics import SourceMetrics
from bridge.values import Model, ReadableFile, Seconds, SecretFile, Tls, secret

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:,\[\]]+):(\d{1,5})")
_DESTINATION = re.compile(r"/(?:queue|topic|exchange|amq/queue|dsub|reply-queue|temp-queue)/\S+")


def _addresses(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _address(value: str) -> str:
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found[1]) < 65536:
        raise ValueError(f"expected HOST:PORT such as mq.example.org:61613, found {value!r}")
    return value


def _destination(value: str) -> str:
    if not _DESTINATION.fullmatch(value):
        raise ValueError(
            f"expected a destination such as /queue/rucio.oscar or /topic/rucio.events, found {value!r}"
        )
    return value


def _event_type(value: str) -> str:
    if not value or value.lower() == "email":
        raise ValueError("expected an event type of Rucio such as close; emails are never taken")
    return value.lower()


class ClientTls(Tls):
    """Whom to believe, and who we are. Files are read at each connecting, so renewed ones are taken up."""

    cert_file: ReadableFile | None = None
    """PEM: the client certificate with its chain."""
    key_file: ReadableFile | None = None
    """PEM; when it is not given, `cert_file` holds the key too."""

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is given, so expected cert_file too")
        return self

    def context(self) -> Context:
        """Make the context for connecting. Raises OSError or ValueError when a file can't be used."""
        context = super().context()
        if self.cert_file is not None:
            # A password that is never None: OpenSSL would ask for a missing one at the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, "")
        return context


class DeclareConfig(Model):
    """An AMQP queue to be made where it is missing, durable, and bound. One that is there stays as it is."""

    queue_type: Literal["quorum", "classic"] = "quorum"
    """Of one that is made; a quorum queue is made without a delivery limit."""
    exchange: str | None = Field(default=None, min_length=1, max_length=255)
    """The exchange to bind it to, which must be there; what STOMP sends to `/topic/…` is in `amq.topic`."""
    routing_key: str = Field(default="#", max_length=255)
    """What of the exchange; `/topic/NAME` of STOMP has the key NAME."""


class RucioConfig(SourceConfig):
    """Reads what Rucio's hermes sends, from one or several message brokers."""

    type: Literal["rucio"]
    protocol: Literal["stomp", "amqp"]
    """STOMP 1.2 (ActiveMQ, RabbitMQ with its plugin), or AMQP 0-9-1 (RabbitMQ)."""
    brokers: Annotated[
        tuple[Annotated[str, AfterValidator(_address)], ...], BeforeValidator(_addresses), Field(min_length=1)
    ]
    """`HOST:PORT`, several as a list or with commas. Each address behind each name is read."""
    destination: Annotated[str, AfterValidator(_destination)] | None = None
    """STOMP: what to subscribe to."""
    queue: str | None = Field(default=None, min_length=1, max_length=255)
    """AMQP: what to consume."""
    virtual_host: str = Field(default="/", min_length=1)
    """RabbitMQ's; ActiveMQ has none."""
    username: str | None = Field(default=None, min_length=1)
    """Without it the client certificate says who we are."""
    password: SecretStr | None = None
    password_file: SecretFile | None = None
    tls: ClientTls | None = None
    """`{}` for TLS with the system's authorities; without it the connection is plain."""
    heartbeat: Annotated[Seconds, Field(ge=1, le=600)] = 10.0
    """Between two signs of life, both ways. A broker that is silent for twice as long is left."""
    client_id: str | None = Field(default=None, min_length=1)
    """STOMP: with `subscription`, what a durable subscription to a topic belongs to."""
    subscription: str | None = Field(default=None, min_length=1)
    """STOMP: the durable subscription's name."""
    selector: str | None = Field(default=None, min_length=1)
    """STOMP, topics of ActiveMQ: what of the topic, such as `event_type = 'close'`."""
    declare: DeclareConfig | None = None
    """AMQP: make the queue where it is missing."""
    event_types: tuple[Annotated[str, AfterValidator(_event_type)], ...] = ()
    """Only events of these types; all when none is given. `email` never."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._has_what_its_protocol_needs()
        if self.password is not None and self.password_file is not None:
            raise ValueError("expected one of password and password_file, not both")
        has_password = self.password is not None or self.password_file is not None
        if has_password != (self.username is not None):
            raise ValueError("expected username and password (or password_file), or neither")
        if self.username is None and (self.tls is None or self.tls.cert_file is None):
            raise ValueError("expected username and password_file, or tls with cert_file")
        return self

    def _has_what_its_protocol_needs(self) -> None:
        mine, others = (
            ("destination", ("queue", "declare"))
            if self.protocol == "stomp"
            else ("queue", ("destination", "client_id", "subscription", "selector"))
        )
        if getattr(self, mine) is None:
            raise ValueError(f"protocol {self.protocol} needs {mine}")
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} means nothing with protocol {self.protocol}; remove it")
        if (self.client_id is None) != (self.subscription is None):
            raise ValueError("expected client_id and subscription together, for a durable subscription")
        topic = (self.destination or "").startswith("/topic/")
        if self.subscription is not None and not topic:
            raise ValueError("a durable subscription is one to a topic; a queue keeps its messages anyway")
        if self.selector is not None and not topic:
            raise ValueError(
                "a selector on a queue stalls it, once what nobody selects fills the broker's page; "
                "use event_types or a route's `when`"
            )

    @property
    def what(self) -> str:
        """What is read at each broker, for a person."""
        return f"queue {self.queue}" if self.protocol == "amqp" else str(self.destination)

    @property
    def holds_unread(self) -> bool:
        # What is sent to another destination while nobody reads it is lost.
        kept = (self.destination or "").startswith(("/queue/", "/amq/queue/"))
        return kept or self.queue is not None or self.subscription is not None

    def read_password(self) -> str | None:
        """Give the password. Raises CredentialError."""
        return secret(self.password, self.password_file)

    def build(self, key: str, metrics: SourceMetrics, keeping: Keeping | None = None) -> Source:
        from bridge.sources.rucio.source import RucioSource  # only who reads Rucio loads its clients

        return RucioSource(self, key, metrics)

    async def check(self, key: str, patience: Patience) -> Sequence[Finding]:
        from bridge.sources.rucio.check import check  # likewise

        return await check(self, key, patience)

    def own_certificate(self) -> OwnCertificate | None:
        file = None if self.tls is None else self.tls.cert_file
        return None if file is None else OwnCertificate(file)

    def events_of(self, event: Event) -> Sequence[Event] | NoEvent:
        found = read(event.data, event.source, frozenset(self.event_types), event.attributes)
        if isinstance(found, Unwanted):
            return NoEvent(found.reason)
        if isinstance(found, Unreadable):
            return NoEvent(found.reason, dead=True)
        return [replace(found, attributes={**event.attributes, **found.attributes})]
