"""One request to dCache's REST API: the credential, the rate, and what an answer means."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self

import aiohttp
import structlog
from aiohttp import hdrs
from yarl import URL

from bridge import __version__
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
    read_secret_of,
)
from bridge.net.bodies import body_of
from bridge.net.certificates import refusal
from bridge.net.proxies import proxy_for
from bridge.net.unanswered import why_unanswered
from bridge.sources.dcache.config import BearerAuth, DcacheConfig, X509Auth
from bridge.telemetry.logging import excerpt

_log = structlog.get_logger(__name__)

ANSWER_SECONDS = 30.0
"""For any answer but the stream; a page of a listing is the longest."""
MOST_BYTES = 2**20
"""Of an answer, unless its asker knows that it may be longer."""
CONNECT_SECONDS = 10.0
_TELL_SECONDS = 60.0
"""Between two log lines that show such a text."""
_REREAD_SECONDS = 60.0
"""After which a token's file is read again."""
_LONGEST_PAUSE = 60.0
"""Seconds of `Retry-After` believed at most; who was blocked is let in again after 10 by default."""
_LATE = 0.05
_NOT_NOW = frozenset((408, 425, 429))
"""Of the answers 4xx those that ask to come again."""
REFUSED_SECONDS = 25.0
"""Between two requests with a credential that was refused. dCache blocks an address after three refusals
(`frontend.limits.error.max-allowed`), each within 20 s of the one before (`….error.block.window.time`), for
10 s (`….rate.per-client.block.window.time`; frontend.xml, RateLimitedHandlerList.java)."""
USER_AGENT = f"oscar-event-bridge/{__version__}"


class Unanswered(Exception):  # noqa: N818 - a state of the connection more than a fault
    """No answer, or one that asks to come again: it is worth trying later."""


class Refused(Unanswered):
    """The credential is missing or no good."""


class Failing(Unanswered):
    """An answer about this one request, such as a 500: others may be answered well."""


class Denied(Exception):  # noqa: N818
    """This user may not."""


class Missing(Exception):  # noqa: N818
    """It is not there."""


@dataclass(slots=True)
class Refusal:
    """The last refusal of a credential. It outlives a connection: who opens again does not ask sooner."""

    credential: str | None = None
    """None: the last one was taken."""
    until: float = 0.0
    """Not to be tried before (monotonic)."""


class Response(NamedTuple):
    """An answer."""

    status: int
    text: str
    location: str


class Http:
    """One user at one frontend. Every request is bounded in time; all together keep to the rate."""

    def __init__(self, config: DcacheConfig, refusal: Refusal | None = None) -> None:
        self._config = config
        self.tls = config.tls.context()
        self.proxy = proxy_for(config.endpoint)
        self._told_at = -math.inf
        self._pace = _Pace(config.request_rate)
        self._bearer = _bearer(config, self._post)
        self._basic: str | None = None
        self._certificate_changed = 0.0
        self._refusal = refusal or Refusal()
        self._fresh: str | None = None
        """The credential got because another was refused, while it is not known whether it is taken."""
        self._session: aiohttp.ClientSession | None = None
        self.ahead = 0.0
        """By how many seconds the server's clock is ahead of ours, to about one."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, ssl=self.tls),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            # Not compressed: a small body that unpacks to a huge one could not be bounded.
            headers={hdrs.USER_AGENT: USER_AGENT, hdrs.ACCEPT_ENCODING: "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The one that was opened on entering."""
        assert self._session is not None  # noqa: S101 - made on entering
        return self._session

    async def get(self, path: str, query: Mapping[str, str] | None = None, *, most: int = MOST_BYTES) -> Any:
        """Return the JSON at `path`, which is encoded, of at most `most` bytes.

        Raise Missing, Denied, Refused, Unanswered.
        """
        answer = await self.ask("GET", path, query=query, most=most)
        try:
            return _DECODER.decode(answer.text)
        except (ValueError, RecursionError):
            raise Unanswered(f"GET {path}: not JSON; is `endpoint` dCache's REST API?") from None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        send: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        known: frozenset[int] | set[int] = frozenset(),
        most: int = MOST_BYTES,
    ) -> Response:
        """Make a request and return its answer when that is 2xx or `known`. `path` is encoded."""
        url = URL(f"{self._config.endpoint}{path}", encoded=True)
        if query:
            url = url.with_query(query)
        for _ in range(2):
            headers = {hdrs.ACCEPT: "application/json", **await self.turn()}
            sent = time.time()
            try:
                async with self.session.request(
                    method, url, json=send, headers=headers, allow_redirects=False, proxy=self.proxy
                ) as response:
                    # JSON is UTF-8 (RFC 8259), whatever the header says.
                    text = (await body_of(response, most)).decode(errors="replace")
                    told = Response(response.status, text, response.headers.get(hdrs.LOCATION, ""))
                    self._note_clock(response.headers.get(hdrs.DATE), sent)
                    pause = response.headers.get(hdrs.RETRY_AFTER)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Unanswered(f"{method} {path}: {reason_of(error)}") from None
            blocked = told.status == 429 and pause is not None  # without, it may be for another reason
            if not blocked and (200 <= told.status < 300 or told.status in known):
                self._accepted()
                return told
            what = self.describe(f"{method} {path}", told.status, told.text)
            await self.judge(told.status, what, headers, pause)
        raise Refused(what)

    def describe(self, request: str, status: int, text: str) -> str:
        """Return what an answer says that is no success: its status, and what dCache says of it.

        Readiness shows that to anyone, so any other text, such as a proxy's page, is for the log alone.
        """
        said, now = message(text), time.monotonic()
        if not said and text and now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            _log.warning(
                "dcache: an answer without a message of dCache's: does a proxy between answer so?",
                request=request,
                status=status,
                text=excerpt(text),
            )
        return excerpt(f"{request} answered {status}: {said}")

    async def turn(self) -> dict[str, str]:
        """Return, once the next request may begin, the headers that log it in. Raise Refused, Unanswered."""
        await self._pace.turn()
        headers = await self.authorization()
        self._spare_refusals(headers)
        return headers

    async def judge(
        self, status: int, what: str, headers: Mapping[str, str], retry_after: str | None
    ) -> None:
        """Raise what an answer means, unless the request is worth making again with a new credential."""
        if status == 404:
            raise Missing(what)
        if status == 403:
            raise Denied(what)
        if status == 401:
            used = headers.get(hdrs.AUTHORIZATION, "")
            self._refusal.credential = self._named(used)
            self._refusal.until = time.monotonic() + REFUSED_SECONDS
            before, self._fresh = self._fresh, None
            if used != before and (fresh := await self._renewed(used)) is not None:
                self._fresh = fresh
                return
            raise Refused(what)
        if status == 429 or (status == 503 and retry_after is not None):
            self.hold(retry_after)
        if status == 500 or (400 <= status < 500 and status not in _NOT_NOW):
            raise Failing(what)
        raise Unanswered(what)

    def hold(self, retry_after: str | None) -> None:
        """Begin no request for as long as dCache says, or for a second."""
        self._pace.hold(_seconds(retry_after))

    # Credentials

    def _spare_refusals(self, headers: Mapping[str, str]) -> None:
        """Let one request alone find out whether a refused credential is taken by now. Raise Refused."""
        refusal, used = self._refusal, headers.get(hdrs.AUTHORIZATION, "")
        if used == self._fresh or self._named(used) != refusal.credential:
            return
        now = time.monotonic()
        if now < refusal.until:
            raise Refused("dCache refuses the credential (401)")
        refusal.until = now + REFUSED_SECONDS

    def _named(self, authorization: str) -> str:
        """Name what a person would have to renew: access tokens renew themselves, and are refused alike."""
        return "oidc" if isinstance(self._config.auth, OidcAuth) else authorization

    def _accepted(self) -> None:
        self._refusal.credential = self._fresh = None

    async def authorization(self) -> dict[str, str]:
        """Return the header of a request. Raise Refused, Unanswered when there is no credential."""
        self._load_certificate()
        auth = self._config.auth
        try:
            if self._bearer is not None:
                return {hdrs.AUTHORIZATION: await self._bearer.get()}
            if isinstance(auth, BasicAuth):
                if self._basic is None:
                    self._basic = await basic(auth)
                return {hdrs.AUTHORIZATION: self._basic}
        except CredentialError as error:
            _raise(error)
        return {}

    async def _renewed(self, used: str) -> str | None:
        """Return another credential than `used`, which was refused, if there is one."""
        try:
            if self._bearer is not None:
                return await self._bearer.renew(used)
            if isinstance(self._config.auth, BasicAuth):
                self._basic = await basic(self._config.auth)
                return None if self._basic == used else self._basic
        except CredentialError as error:
            _raise(error)
        return None

    def _load_certificate(self) -> None:
        """Take up a client certificate that was renewed. New connections use it."""
        auth = self._config.auth
        if not isinstance(auth, X509Auth):
            return
        try:
            changed = auth.cert_file.stat().st_mtime
            if changed != self._certificate_changed:
                auth.load(self.tls)
                self._certificate_changed = changed
        except (OSError, ValueError) as error:
            raise Refused(f"the client certificate can't be read: {error}") from None

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        try:
            trust = await asyncio.to_thread(self._config.tls.issuer_context)
            async with self.session.post(
                url, data=form, headers=headers, allow_redirects=False, ssl=trust, proxy=proxy_for(url)
            ) as answer:
                return Reply(
                    answer.status, (await body_of(answer, MOST_BYTES)).decode(errors="replace"), None
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = f"token endpoint: {reason_of(error)}"
            raise NoCredentialError(Answer(Verdict.UNAVAILABLE, "connect", detail)) from None

    def _note_clock(self, date: str | None, sent: float) -> None:
        """Compare clocks. The header tells whole seconds, so a difference below one is taken for none."""
        try:
            if date is not None:
                told = parsedate_to_datetime(date).timestamp()
                self.ahead = 0.0 if told - time.time() <= 0 <= told + 1 - sent else told - time.time()
        except (ValueError, OverflowError, OSError):
            pass  # a date that is none

    def now(self) -> float:
        """Return the server's time, in seconds since 1970 UTC, as far as its answers tell it."""
        return time.time() + self.ahead

    def seconds_left(self) -> float:
        """Seconds until the access token expires; infinite where none does, NaN while there is none."""
        return math.inf if self._bearer is None else self._bearer.seconds_left()


class _Pace:
    """Spreads requests evenly; a client that dCache asked to wait waits as a whole."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next = 0.0

    async def turn(self) -> None:
        """Return when the next request may begin."""
        now = time.monotonic()
        mine = max(self._next, now - _LATE)
        self._next = mine + self._interval
        if mine > now:
            await asyncio.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Begin none for `seconds`."""
        self._next = max(self._next, time.monotonic() + seconds)


def _bearer(config: DcacheConfig, post: Any) -> Bearer | None:
    auth = config.auth
    if isinstance(auth, OidcAuth):
        return Bearer(RefreshTokenGrant(auth, post))
    if not isinstance(auth, BearerAuth):
        return None
    lifetime = math.inf if auth.token_file is None else _REREAD_SECONDS

    async def read() -> Grant:
        return Grant(await read_secret_of(auth, "token") or "", lifetime)

    return Bearer(read)


def _raise(error: CredentialError) -> None:
    if isinstance(error, NoCredentialError) and error.answer.verdict is Verdict.UNAVAILABLE:
        raise Unanswered(str(error)) from None
    raise Refused(str(error)) from None


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def message(text: str) -> str:
    """Return what dCache says in its JSON for an error, older or newer (RFC 7807); else nothing."""
    try:
        told = mapping(json.loads(text))
        messages = [str(mapping(one).get("message")) for one in told.get("errors") or ()]
        return "; ".join(messages) or str(told.get("detail") or told.get("title") or "")
    except (ValueError, TypeError, RecursionError):
        return ""


def _whole(digits: str) -> int | str:
    """Return a JSON number; as text where it has more digits than any that dCache means."""
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


_MOST_DIGITS = 30
_DECODER = json.JSONDecoder(parse_int=_whole)


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 1.0


def reason_of(error: BaseException) -> str:
    """Return why there was no answer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not believed: {error.verify_message}"
    if (said := refusal(error)) is not None:
        return said
    return excerpt(why_unanswered(error))
