"""Credentials of a cluster: where each kind comes from, and how one is kept fresh for many workers."""

from __future__ import annotations

import asyncio
import json
import math
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote_plus

import structlog

from bridge.core.errors import CredentialError
from bridge.core.ports import Answer, Verdict
from bridge.destinations.oscar.answers import excerpt, judge_management
from bridge.destinations.oscar.config import BasicAuth, OidcAgentAuth, OidcAuth, ServiceTokenAuth
from bridge.values import secret

log = structlog.get_logger(__name__)

_FETCH_SECONDS = 15.0
_LONGEST_MARGIN = 60.0
"""Seconds before its expiry at which a token is refreshed; a quarter of a life below four minutes."""
_PAUSE_AFTER_FAILURE = 5.0
"""Seconds until the next refresh of a token that still works."""
_ASSUMED_LIFETIME = 300.0
"""Seconds, where the issuer does not tell (`expires_in` is only recommended, RFC 6749, 5.1)."""
_SERVICE_TOKEN_LENGTH = 64
_LONGEST_AGENT_ANSWER = 1 << 20


class Reply(NamedTuple):
    """An answer of the management API or of a token endpoint."""

    status: int
    text: str
    retry_after: float | None


class Grant(NamedTuple):
    """A bearer token, and how many seconds it lives from the moment it was asked for."""

    token: str
    lifetime: float = math.inf


class NoCredentialError(CredentialError):
    """No usable credential: `answer` tells whether it was refused, or only out of reach."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.detail)
        self.answer = answer


class Poster(Protocol):
    """Posts a form. Raises NoCredentialError when no answer came."""

    async def __call__(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply: ...


def refused(detail: str) -> NoCredentialError:
    """Make the error for a credential that was looked at and is no good. `detail` must hold no secret."""
    return NoCredentialError(Answer(Verdict.REFUSED, "credentials", detail))


class Bearer:
    """A bearer token for any number of workers: fetched by one of them, while the others wait for it.

    Whoever waits during a fetch shares its result, a failure included, so a token endpoint that is
    down sees one request for all of them. A fetch that is cancelled leaves its turn to the next.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Grant]]) -> None:
        self._fetch = fetch
        self._lock = asyncio.Lock()
        self._fetches = 0
        self._failure: Answer | None = None
        self._authorization: str | None = None
        self._due = self._doubtful_from = self._expires = math.inf

    def __repr__(self) -> str:
        return f"<Bearer {'none' if self._authorization is None else 'kept'}, {self._fetches} fetches>"

    @property
    def current(self) -> str | None:
        """The `Authorization` value, when one is kept that is not due for a refresh."""
        return self._authorization if time.monotonic() < self._due else None

    @property
    def doubtful(self) -> bool:
        """Whether the token is near its expiry, or past it: an answer may be about that."""
        return time.monotonic() >= self._doubtful_from

    def seconds_left(self) -> float:
        """Seconds until the token expires; NaN while there is none."""
        return math.nan if self._authorization is None else self._expires - time.monotonic()

    async def get(self) -> str:
        """Give the `Authorization` value, refreshed where due. Raises NoCredentialError.

        A refresh that fails before the expiry is no harm yet: the token goes on being used.
        """
        if (current := self.current) is not None:
            return current
        try:
            return await self._fetched()
        except NoCredentialError:
            kept, now = self._authorization, time.monotonic()
            if kept is None or now >= self._expires:
                raise
            self._due = min(now + _PAUSE_AFTER_FAILURE, self._expires)
            return kept

    async def renew(self, used: str) -> str | None:
        """Give another `Authorization` value than `used`, which was not liked; None when there is no other.

        Raises NoCredentialError.
        """
        if self._authorization == used:
            await self._fetched()
        return None if self._authorization == used else self._authorization

    async def _fetched(self) -> str:
        seen = self._fetches
        async with self._lock:
            if self._fetches == seen:
                self._failure = await self._try()
                self._fetches += 1
            if self._failure is not None:
                raise NoCredentialError(self._failure)
            assert self._authorization is not None  # noqa: S101 - a fetch that did not fail has set it
            return self._authorization

    async def _try(self) -> Answer | None:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                grant = await self._fetch()
            # RFC 6750, 2.1, and what may stand in a header at all
            if not (grant.token.isascii() and grant.token.isprintable()) or " " in grant.token:
                raise refused("the token has characters that no bearer token has")
        except NoCredentialError as error:
            log.warning("credential_failed", cause=error.answer.cause, detail=error.answer.detail)
            return error.answer
        except TimeoutError:
            return Answer(Verdict.UNAVAILABLE, "timeout", f"no credential within {_FETCH_SECONDS:g} s")
        margin = min(_LONGEST_MARGIN, grant.lifetime / 4)
        self._authorization = f"Bearer {grant.token}"
        self._expires = asked + grant.lifetime
        self._due = self._expires - margin
        self._doubtful_from = self._due - margin
        return None


async def _read(config: Any, key: str) -> str | None:
    """Read `key` or `key_file`; the file may have been replaced since. Raises NoCredentialError."""
    try:
        return await asyncio.to_thread(secret, getattr(config, key), getattr(config, f"{key}_file"))
    except CredentialError as error:
        raise refused(str(error)) from error


async def basic(auth: BasicAuth) -> str:
    """Give the `Authorization` value of HTTP basic (RFC 7617). Raises NoCredentialError."""
    return _basic(auth.username, await _read(auth, "password") or "")


def _basic(username: str, password: str) -> str:
    return "Basic " + b64encode(f"{username}:{password}".encode()).decode("ascii")


async def given_token(auth: ServiceTokenAuth) -> Grant:
    """Give the configured service token. Raises NoCredentialError.

    OSCAR tells a service token by its length and takes any other for an access token (run.go,
    tokenLength), which it then can't read and answers like a gateway that is down.
    """
    token = await _read(auth, "token") or ""
    if len(token) != _SERVICE_TOKEN_LENGTH:
        raise refused(f"the service token has {len(token)} characters; OSCAR's have {_SERVICE_TOKEN_LENGTH}")
    return Grant(token)


class RefreshTokenGrant:
    """Access tokens by the refresh-token grant (RFC 6749, section 6).

    Where the issuer hands out a new refresh token with each access token, the newest is kept in memory
    and never written: the bridge changes no secret of the operator's. After a restart such an issuer
    needs a refresh token that was not used yet, so give the bridge a long-lived one instead. A file
    whose text changes while the bridge runs takes the place of the one in memory.
    """

    def __init__(self, auth: OidcAuth, post: Poster) -> None:
        self._auth = auth
        self._post = post
        self._configured: str | None = None
        self._newest: str = ""

    async def __call__(self) -> Grant:
        """Ask the token endpoint. Raises NoCredentialError."""
        auth = self._auth
        configured = await _read(auth, "refresh_token") or ""
        if configured != self._configured:
            self._configured = self._newest = configured
        form = {"grant_type": "refresh_token", "refresh_token": self._newest, "scope": auth.scopes}
        headers = {"Accept": "application/json"}
        client_secret = await _read(auth, "client_secret")
        if client_secret is None:
            form["client_id"] = auth.client_id
        else:  # RFC 6749, 2.3.1: form-encoded, then basic
            headers["Authorization"] = _basic(quote_plus(auth.client_id), quote_plus(client_secret))
        reply = await self._post(auth.token_endpoint, form, headers)
        hidden = (self._newest, client_secret or "")
        if reply.status != 200:
            verdict = judge_management(reply.status)
            cause = "credentials" if verdict is Verdict.REFUSED else f"http_{reply.status}"
            detail = excerpt(f"token endpoint answered {reply.status}: {reply.text}", *hidden)
            raise NoCredentialError(Answer(verdict, cause, detail, retry_after=reply.retry_after))
        granted = _json_object(reply.text)
        token = granted.get("access_token")
        if not isinstance(token, str) or not token:
            raise refused("the token endpoint answered 200 without an access_token: is it a token endpoint?")
        rotated = granted.get("refresh_token")
        if isinstance(rotated, str) and rotated and rotated != self._newest:
            self._newest = rotated
            log.info("refresh_token_rotated", detail="the new one is kept in memory only")
        return Grant(token, _lifetime(granted.get("expires_in")))


async def ask_agent(auth: OidcAgentAuth) -> Grant:
    """Ask a local oidc-agent for an access token. Raises NoCredentialError.

    The agent answers a JSON object in plain with one; encryption on its local socket is the client's
    choice (oidc-agent, src/ipc/serveripc.c, `server_ipc_read`).
    """
    request = {
        "request": "access_token",
        "account": auth.account,
        "min_valid_period": int(2 * _LONGEST_MARGIN),
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
    return Grant(token, _lifetime(expires_at - time.time() if isinstance(expires_at, int | float) else None))


async def _agent_answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Read until the object is whole: the agent neither frames its answer nor promises to hang up."""
    raw = bytearray()
    while len(raw) < _LONGEST_AGENT_ANSWER and (chunk := await reader.read(65536)):
        raw += chunk
        if answer := _json_object(raw.decode("utf-8", "replace")):
            return answer
    return {}


def _json_object(text: str) -> dict[str, Any]:
    """Parse an object; an empty one stands for whatever else `text` is."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _lifetime(seconds: object) -> float:
    try:
        lifetime = float(seconds)  # type: ignore[arg-type]  # a number, or a text from issuers that quote it
    except (TypeError, ValueError):
        return _ASSUMED_LIFETIME
    return max(lifetime, 1.0) if math.isfinite(lifetime) else _ASSUMED_LIFETIME
