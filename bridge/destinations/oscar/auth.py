"""Credentials that only OSCAR takes: service tokens, and access tokens from a local oidc-agent."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from bridge.core.ports import Answer, Verdict
from bridge.credentials import (
    LONGEST_MARGIN,
    Grant,
    NoCredentialError,
    lifetime,
    read_secret_of,
    refused,
)
from bridge.destinations.oscar.answers import SERVICE_TOKEN_LENGTH
from bridge.destinations.oscar.config import OidcAgentAuth, ServiceTokenAuth
from bridge.net.documents import json_object
from bridge.telemetry.logging import excerpt

_LONGEST_AGENT_ANSWER = 1 << 18
"""Bytes: an access token, and what is told of it."""


async def given_token(auth: ServiceTokenAuth) -> Grant:
    """Return the configured service token. Raises NoCredentialError.

    A text of another length OSCAR takes for an access token, which it then can't read and answers like a
    gateway that is down.
    """
    token = await read_secret_of(auth, "token") or ""
    if len(token) != SERVICE_TOKEN_LENGTH:
        raise refused(f"the service token has {len(token)} characters; OSCAR's have {SERVICE_TOKEN_LENGTH}")
    return Grant(token)


async def ask_agent(auth: OidcAgentAuth) -> Grant:
    """Ask a local oidc-agent for an access token. Raises NoCredentialError.

    The agent answers a JSON object in plain with one; encryption on its local socket is the client's
    choice (oidc-agent, src/ipc/serveripc.c, `server_ipc_read`).
    """
    request = {
        "request": "access_token",
        "account": auth.account,
        "min_valid_period": int(2 * LONGEST_MARGIN),
        "application_hint": "oscar-event-bridge",
    }
    try:
        reader, writer = await asyncio.open_unix_connection(auth.socket)
        try:
            writer.write(json.dumps(request).encode())
            await writer.drain()
            answer = await _agent_answer(reader)
        finally:
            writer.close()
    except OSError as error:
        raise NoCredentialError(
            Answer(Verdict.UNAVAILABLE, "connect", f"oidc-agent at {auth.socket}: {error.strerror or error}")
        ) from error
    if answer.get("status") == "failure" or "error" in answer:
        raise refused(excerpt(f"oidc-agent, account {auth.account}: {answer.get('error')}"))
    token, expires_at = answer.get("access_token"), answer.get("expires_at")
    if not isinstance(token, str) or not token:
        raise refused(f"oidc-agent, account {auth.account}: an answer without an access_token")
    return Grant(token, lifetime(expires_at - time.time() if isinstance(expires_at, int | float) else None))


async def _agent_answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Read until the object is whole: the agent neither frames its answer nor promises to hang up.

    Raises NoCredentialError when it has no end.
    """
    raw = bytearray()
    while chunk := await reader.read(65536):
        raw += chunk
        if answer := json_object(raw.decode("utf-8", "replace")):
            return answer
        if len(raw) > _LONGEST_AGENT_ANSWER:
            raise refused(f"the oidc-agent answered more than {_LONGEST_AGENT_ANSWER} bytes")
    return {}
