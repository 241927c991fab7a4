"""Credentials of HTTP servers: what is configured of them, and how a token is kept fresh for many workers."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, NamedTuple, Protocol, Self
from urllib.parse import quote_plus

import aiohttp
import structlog
from pydantic import Field, model_validator

from bridge.core.errors import CredentialError, no_descriptors
from bridge.core.ports import NO_DESCRIPTORS, Answer, Verdict
from bridge.net.bodies import body_of
from bridge.net.documents import json_object
from bridge.net.proxies import proxy_for
from bridge.telemetry.logging import excerpt
from bridge.values import HttpUrl, Model, Secret, SecretFile, exactly_one, secret

_log = structlog.get_logger(__name__)

EGI_TOKEN_ENDPOINT = "https://aai.egi.eu/auth/realms/egi/protocol/openid-connect/token"  # noqa: S105 - a URL
"""Token endpoint of EGI Check-in, the issuer OSCAR's own clients use by default."""
EGI_SCOPES = "openid email profile voperson_id eduperson_entitlement"
_FETCH_SECONDS = 15.0
LONGEST_MARGIN = 60.0
"""Seconds before its expiry at which a token is refreshed; a quarter of a life below four minutes."""
_PAUSE_AFTER_FAILURE = 5.0
"""Seconds until the next refresh of a token that still works."""
_LONGEST_ANSWER = 1 << 20
"""Bytes of a token endpoint's answer."""
_ASSUMED_LIFETIME = 300.0
"""Seconds, where the issuer does not tell (`expires_in` is only recommended, RFC 6749, 5.1)."""


class BasicAuth(Model):
    """A user's name and password (RFC 7617)."""

    type: Literal["basic"]
    username: str = Field(min_length=1, pattern=r"^[^:]*$")  # RFC 7617: no colon in a user's name
    password: Secret | None = None
    password_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        exactly_one(self, "password")
        return self


class OidcAuth(Model):
    """Access tokens by the refresh-token grant (RFC 6749, section 6)."""

    type: Literal["oidc"]
    refresh_token: Secret | None = None
    refresh_token_file: SecretFile | None = None
    token_endpoint: HttpUrl = EGI_TOKEN_ENDPOINT
    client_id: str = Field(min_length=1)
    client_secret: Secret | None = None
    client_secret_file: SecretFile | None = None
    """For a confidential client; EGI Check-in's refresh tokens are a public client's."""
    scopes: str = Field(default=EGI_SCOPES, min_length=1)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        exactly_one(self, "refresh_token")
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("expected at most one of `client_secret` and `client_secret_file`")
        return self


class Reply(NamedTuple):
    """An answer of a token endpoint, or of a management API."""

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

    def doubtful(self, used: str) -> bool:
        """Whether `used` is near its expiry, past it, or replaced since: an answer may be about that."""
        return self._authorization != used or time.monotonic() >= self._doubtful_from

    def seconds_left(self) -> float:
        """Seconds until the token expires; NaN while there is none."""
        return math.nan if self._authorization is None else self._expires - time.monotonic()

    def works(self) -> bool | None:
        """Whether the last fetch gave a token; None before the first."""
        return self._failure is None if self._fetches else None

    async def get(self) -> str:
        """Return the `Authorization` value, refreshed where due. Raises NoCredentialError.

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
        """Return a value other than `used`, which the server refused; None if there is none.

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
            return _failed(error.answer)
        except TimeoutError:
            detail = f"no credential within {_FETCH_SECONDS:g} s"
            return _failed(Answer(Verdict.UNAVAILABLE, "timeout", detail))
        margin = min(LONGEST_MARGIN, grant.lifetime / 4)
        self._authorization = f"Bearer {grant.token}"
        self._expires = asked + grant.lifetime
        self._due = self._expires - margin
        self._doubtful_from = self._due - margin
        return None


def _failed(answer: Answer) -> Answer:
    _log.warning("no credential", cause=answer.cause, detail=answer.detail)
    return answer


async def read_secret_of(config: Model, key: str) -> str | None:
    """Read `key` or `key_file`; the file may have been replaced since. Raises NoCredentialError."""
    try:
        return await asyncio.to_thread(secret, getattr(config, key), getattr(config, f"{key}_file"))
    except CredentialError as error:
        if no_descriptors(error):
            answer = Answer(Verdict.UNAVAILABLE, NO_DESCRIPTORS, str(error), ours=True)
            raise NoCredentialError(answer) from error
        raise refused(str(error)) from error


async def basic(auth: BasicAuth) -> str:
    """Return the `Authorization` value of HTTP basic (RFC 7617). Raises NoCredentialError."""
    return basic_header(auth.username, await read_secret_of(auth, "password") or "")


def basic_header(username: str, password: str) -> str:
    return "Basic " + b64encode(f"{username}:{password}".encode()).decode("ascii")


def client_header(client_id: str, client_secret: str) -> str:
    """Return the `Authorization` value by which a client logs in to a token endpoint (RFC 6749, 2.3.1)."""
    return basic_header(quote_plus(client_id), quote_plus(client_secret))


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
        configured = await read_secret_of(auth, "refresh_token") or ""
        if configured != self._configured:
            self._configured = self._newest = configured
        form = {"grant_type": "refresh_token", "refresh_token": self._newest, "scope": auth.scopes}
        headers = {"Accept": "application/json"}
        client_secret = await read_secret_of(auth, "client_secret")
        if client_secret is None:
            form["client_id"] = auth.client_id
        else:
            headers["Authorization"] = client_header(auth.client_id, client_secret)
        reply = await self._post(auth.token_endpoint, form, headers)
        hidden = (self._newest, client_secret or "")
        if reply.status != 200:
            busy = reply.status in (408, 425, 429) or reply.status >= 500
            verdict = Verdict.UNAVAILABLE if busy else Verdict.REFUSED
            cause = "credentials" if verdict is Verdict.REFUSED else f"http_{reply.status}"
            told = json_object(reply.text)
            said = ": ".join(str(told[key]) for key in ("error", "error_description") if told.get(key))
            if not said and reply.text:  # readiness may show the detail to anyone: no page of a proxy's
                text = excerpt(reply.text, *hidden)
                _log.warning(
                    "the token endpoint's answer is no error of OAuth's", status=reply.status, text=text
                )
            detail = excerpt(f"token endpoint answered {reply.status}: {said}", *hidden)
            raise NoCredentialError(Answer(verdict, cause, detail, retry_after=reply.retry_after))
        granted = json_object(reply.text)
        token = granted.get("access_token")
        if not isinstance(token, str) or not token:
            raise refused("the token endpoint answered 200 without an access_token: is it a token endpoint?")
        rotated = granted.get("refresh_token")
        if isinstance(rotated, str) and rotated and rotated != self._newest:
            self._newest = rotated
            _log.info("the issuer gave a new refresh token, which is kept in memory alone")
        return Grant(token, lifetime(granted.get("expires_in")))


async def post_form(
    session: aiohttp.ClientSession,
    url: str,
    form: Mapping[str, str],
    headers: Mapping[str, str],
    trust: ssl.SSLContext | Literal[True],
) -> Reply:
    """Post a form to a token endpoint, by the proxy that the environment has for it.

    Raises aiohttp.ClientError and OSError where no answer came, or one of more than a mebibyte.
    """
    async with session.post(
        url, data=form, headers=headers, allow_redirects=False, proxy=proxy_for(url), ssl=trust
    ) as response:
        text = (await body_of(response, _LONGEST_ANSWER)).decode("utf-8", "replace")
        return Reply(response.status, text, None)


def lifetime(seconds: object) -> float:
    try:
        lifetime = float(seconds)  # type: ignore[arg-type]  # a number, or a text from issuers that quote it
    except (OverflowError, TypeError, ValueError):
        return _ASSUMED_LIFETIME
    return max(lifetime, 1.0) if math.isfinite(lifetime) else _ASSUMED_LIFETIME
