"""What a test or the command line can choose about the sandbox dCache."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field


def _users() -> dict[str, str]:
    return {"bridge": "bridge"}


def _tokens() -> dict[str, str]:
    return {"bridge-token": "bridge"}


@dataclass(slots=True, kw_only=True)
class Settings:
    """The site's configuration. Every field but those of the listener may change while it runs.

    The limits are those of `skel/share/defaults/frontend.properties`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    tls: ssl.SSLContext | None = None
    """Serve https with this context; with `verify_mode` set, a client's certificate is a login too."""

    users: dict[str, str] = field(default_factory=_users)
    """User name → password (basic)."""
    tokens: dict[str, str] = field(default_factory=_tokens)
    """Bearer token → user name."""

    ring: int = 16_383
    """Events a channel keeps for a client that comes back (`frontend.limit.events.backlog`)."""
    channels_per_user: int = 128
    timeout_seconds: float = 300.0
    """How long a new channel lives without a client."""
    maximum_timeout_seconds: int = 86_400
    metronome: bool = True
    """Whether a channel can be made to tick (`restful/events/streams/metronome`)."""
    rfc7807: bool = False
    """Errors as `{"status", "title", "detail"}`, which dCache 8.2 and later send, instead of
    `{"errors": [{"message", "status"}]}` (`restful/providers/ErrorResponseProvider.java`)."""
    seed: int = 0
    """Of the dice that draw pnfsIds, cookies and the order of a rename's two events."""
