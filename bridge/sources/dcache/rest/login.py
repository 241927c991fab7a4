"""The credential of each request: got, renewed once it was refused, and spared while it is refused."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs

from bridge.core.errors import CredentialError
from bridge.core.ports import Answer, Verdict
from bridge.credentials import (
    BasicAuth,
    Bearer,
    Grant,
    NoCredentialError,
    OidcAuth,
    RefreshTokenGrant,
    Reply,
    basic,
    post_form,
    read_secret_of,
)
from bridge.sources.dcache.config import BearerAuth, DcacheConfig, X509Auth
from bridge.sources.dcache.rest.answers import Refused, Unanswered, reason_of

_REREAD_SECONDS = 60.0
"""Time after which a token's file is read again."""
REFUSED_SECONDS = 25.0
"""Pause between two requests with a refused credential. dCache blocks an address after three refusals
(`frontend.limits.error.max-allowed`), each within 20 s of the one before (`….error.block.window.time`), for
10 s (`….rate.per-client.block.window.time`; frontend.xml, RateLimitedHandlerList.java)."""


@dataclass(slots=True)
class Refusal:
    """The last refusal of a credential. It outlives a connection: who opens again does not ask sooner."""

    credential: str | None = None
    """None if the last credential was taken."""
    until: float = 0.0
    """When the same credential may be tried again (monotonic)."""


class Login:
    """One user at one frontend."""

    def __init__(
        self, config: DcacheConfig, tls: ssl.SSLContext, session: aiohttp.ClientSession, refusal: Refusal
    ) -> None:
        self._config = config
        self._tls = tls
        self._session = session
        self._refusal = refusal
        self._bearer = self._make_bearer()
        self._basic: str | None = None
        self._certificate_changed = 0.0
        """The time of change of the client certificate's file when it was loaded."""
        self._unproven: str | None = None
        """The credential got because another was refused, while it is not known whether it is taken."""

    async def headers(self) -> dict[str, str]:
        """Return what logs the next request in. Raise Refused where there is nothing that is worth trying.

        While a credential is refused, one request in `REFUSED_SECONDS` finds out whether it is taken by now.
        """
        authorization = await self._authorization()
        refusal, now = self._refusal, time.monotonic()
        if authorization != self._unproven and self._name(authorization) == refusal.credential:
            if now < refusal.until:
                raise Refused("dCache refuses the credential (401)")
            refusal.until = now + REFUSED_SECONDS
        return {hdrs.AUTHORIZATION: authorization} if authorization else {}

    def accepted(self) -> None:
        """Note that dCache took the credential of a request."""
        self._refusal.credential = self._unproven = None

    async def renew(self, headers: Mapping[str, str], reason: str) -> None:
        """Get another credential than the one in `headers`, which dCache refused for `reason`.

        Raise Refused where there is none, Unanswered.
        """
        used = headers.get(hdrs.AUTHORIZATION, "")
        self._refusal.credential = self._name(used)
        self._refusal.until = time.monotonic() + REFUSED_SECONDS
        was_unproven, self._unproven = used == self._unproven, None
        fresh = None if was_unproven else await self._renewed(used)
        if fresh is None:
            raise Refused(reason)
        self._unproven = fresh

    async def _authorization(self) -> str:
        """Return the `Authorization` of a request, empty for none. Raise Refused, Unanswered."""
        self._load_certificate()
        try:
            if self._bearer is not None:
                return await self._bearer.get()
            if isinstance(self._config.auth, BasicAuth):
                if self._basic is None:
                    self._basic = await basic(self._config.auth)
                return self._basic
        except CredentialError as error:
            raise _failure_of(error) from None
        return ""

    async def _renewed(self, used: str) -> str | None:
        try:
            if self._bearer is not None:
                return await self._bearer.renew(used)
            if isinstance(self._config.auth, BasicAuth):
                self._basic = await basic(self._config.auth)
                return None if self._basic == used else self._basic
        except CredentialError as error:
            raise _failure_of(error) from None
        return None

    def _name(self, authorization: str) -> str:
        """Name what a person would have to renew: access tokens renew themselves, and are refused alike."""
        return "oidc" if isinstance(self._config.auth, OidcAuth) else authorization

    def _load_certificate(self) -> None:
        """Load a client certificate that was renewed. New connections use it."""
        auth = self._config.auth
        if not isinstance(auth, X509Auth):
            return
        try:
            changed = auth.cert_file.stat().st_mtime
            if changed != self._certificate_changed:
                auth.load(self._tls)
                self._certificate_changed = changed
        except (OSError, ValueError) as error:
            raise Refused(f"the client certificate can't be read: {error}") from None

    def _make_bearer(self) -> Bearer | None:
        auth = self._config.auth
        if isinstance(auth, OidcAuth):
            return Bearer(RefreshTokenGrant(auth, self._post))
        if not isinstance(auth, BearerAuth):
            return None
        lifetime = math.inf if auth.token_file is None else _REREAD_SECONDS

        async def read() -> Grant:
            return Grant(await read_secret_of(auth, "token") or "", lifetime)

        return Bearer(read)

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        """Ask the token endpoint. Raise NoCredentialError when it does not answer."""
        try:
            trust = await asyncio.to_thread(self._config.tls.issuer_context)
            return await post_form(self._session, url, form, headers, trust)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = f"token endpoint: {reason_of(error)}"
            raise NoCredentialError(Answer(Verdict.UNAVAILABLE, "connect", detail)) from None


def _failure_of(error: CredentialError) -> Unanswered:
    if isinstance(error, NoCredentialError) and error.answer.verdict is Verdict.UNAVAILABLE:
        return Unanswered(str(error))
    return Refused(str(error))
