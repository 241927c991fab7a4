"""What every source that reads message brokers takes in the configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.net.certificates import OwnCertificate
from bridge.sources import SourceConfig
from bridge.values import ClientTls, Model, Seconds, SecretFile, address, addresses, one_at_most, secret


class DeclareConfig(Model):
    """An AMQP queue to be made where it is missing, durable, and bound. One that is there stays as it is."""

    queue_type: Literal["quorum", "classic"] = "quorum"
    """Of one that is made; a quorum queue is made without a delivery limit."""
    exchange: str | None = Field(default=None, min_length=1, max_length=255)
    """The exchange to bind it to, which must be there; what STOMP sends to `/topic/…` is in `amq.topic`."""
    routing_key: str = Field(default="#", max_length=255)
    """What of the exchange; `/topic/NAME` of STOMP has the key NAME."""


class BrokerConfig(SourceConfig, ABC):
    """One or several message brokers, and who we are to them."""

    type: str
    brokers: Annotated[
        tuple[Annotated[str, AfterValidator(address("mq.example.org:61613"))], ...],
        BeforeValidator(addresses),
        Field(min_length=1),
    ]
    """`HOST:PORT`, several as a list or with commas. Each address behind each name is read."""
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

    @model_validator(mode="after")
    def _says_who_we_are(self) -> Self:
        one_at_most(self, "password", "password_file")
        has_password = self.password is not None or self.password_file is not None
        if has_password != (self.username is not None):
            raise ValueError("expected username and password (or password_file), or neither")
        if self.username is None and (self.tls is None or self.tls.cert_file is None):
            raise ValueError("expected username and password_file, or tls with cert_file")
        return self

    @property
    @abstractmethod
    def what(self) -> str:
        """What is read at each broker, for a person."""

    @property
    @abstractmethod
    def speaks(self) -> str:
        """The protocol, for a person."""

    def read_password(self) -> str | None:
        """Give the password. Raises CredentialError."""
        return secret(self.password, self.password_file)

    def own_certificate(self) -> OwnCertificate | None:
        return None if self.tls is None else self.tls.own_certificate()
