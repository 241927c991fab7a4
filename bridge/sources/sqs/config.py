"""What `type: sqs` takes in the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from bridge.sources.opening import OpeningConfig
from bridge.sources.storage_events import Open
from bridge.values import Seconds, SecretFile, one_at_most

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo")
_AWS_HOST = re.compile(r"(?:.+\.)?sqs(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.com(?:\.cn)?")


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        well = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        well = False
    if not well:
        raise ValueError("expected a URL such as https://sqs.eu-west-1.amazonaws.com")
    if "@" in parts.netloc:
        raise ValueError("expected a URL without credentials; there are keys for them")
    return value


def _queue(value: str) -> str:
    if "/" in value:
        return _url(value)
    if not _NAME.fullmatch(value):
        raise ValueError(
            "expected the name of a queue (letters, digits, '-', '_', and '.fifo' at a FIFO queue's end) "
            f"or its URL, found {value!r}"
        )
    return value


class SqsConfig(OpeningConfig):
    """Reads a queue of Amazon SQS, or of a server that speaks its protocol."""

    type: Literal["sqs"]
    queue: Annotated[str, AfterValidator(_queue)]
    """Its name, or its URL."""
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    """Where the queue is; by default what a URL of AWS tells, or the AWS environment or profile."""
    endpoint_url: Annotated[str, AfterValidator(_url)] | None = None
    """The server, when it is not AWS; by default where the queue's URL points to."""
    profile: str | None = Field(default=None, min_length=1)
    """A profile of the AWS configuration files."""
    pollers: int = Field(default=2, ge=1, le=100)
    """Receives under way at once; each brings 10 messages at most."""
    wait_seconds: Annotated[Seconds, Field(ge=1, le=20)] = 20.0
    """How long the server holds back an empty answer (its long poll)."""
    access_key_id: str | None = Field(default=None, min_length=1)
    """Static credentials; by default the standard AWS chain: environment, profile, web identity (IRSA),
    container, instance role."""
    secret_access_key: SecretStr | None = None
    secret_access_key_file: SecretFile | None = None
    session_token: SecretStr | None = None
    session_token_file: SecretFile | None = None
    open: Open = "s3"
    """Which messages are opened. `auto` opens more than what the bridge has always opened of a queue."""

    @model_validator(mode="after")
    def _has_one_kind_of_credentials(self) -> Self:
        for name in ("secret_access_key", "session_token"):
            one_at_most(self, name, f"{name}_file")
        has_secret = self.secret_access_key is not None or self.secret_access_key_file is not None
        has_token = self.session_token is not None or self.session_token_file is not None
        if has_secret != (self.access_key_id is not None):
            raise ValueError(
                "expected access_key_id and secret_access_key (or secret_access_key_file), or neither"
            )
        if has_token and not has_secret:
            raise ValueError("session_token is given, so expected access_key_id and secret_access_key too")
        if has_secret and self.profile is not None:
            raise ValueError("expected one of profile and access_key_id, not both")
        return self

    @property
    def endpoint(self) -> str | None:
        """The server's URL; None for AWS's own in the region."""
        if self.endpoint_url is not None or "/" not in self.queue:
            return self.endpoint_url
        parts = urlsplit(self.queue)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def known_region(self) -> str | None:
        """The region as far as the configuration tells it."""
        if self.region is not None or "/" not in self.queue:
            return self.region
        found = _AWS_HOST.fullmatch(urlsplit(self.queue).hostname or "")
        return None if found is None else found[1]

    @property
    def holds_unread(self) -> bool:
        return True
