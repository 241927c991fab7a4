"""One request to dCache's REST API: when it may begin, how it is made, and what its answer means."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self

import aiohttp
import structlog
from aiohttp import hdrs
from yarl import URL

from bridge import __version__
from bridge.net.bodies import body_of
from bridge.net.proxies import proxy_for
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.rest.answers import (
    Refused,
    Unanswered,
    decode,
    failure_of,
    message,
    reason_of,
)
from bridge.sources.dcache.rest.login import Login, Refusal
from bridge.telemetry.logging import excerpt

_log = structlog.get_logger(__name__)

ANSWER_SECONDS = 30.0
"""Time for any answer but the stream; a page of a listing takes longest."""
MOST_BYTES = 2**20
"""Longest answer, unless who asks knows that it may be longer."""
CONNECT_SECONDS = 10.0
"""Time for a connection to be made."""
_LOG_SECONDS = 60.0
"""Between two log lines that show an answer which is not dCache's own."""
_LONGEST_PAUSE = 60.0
"""Seconds of `Retry-After` believed at most; who was blocked is let in again after 10 by default."""
_LATE = 0.05
"""Seconds by which requests that are late may be made up for at once."""
USER_AGENT = f"oscar-event-bridge/{__version__}"


class Response(NamedTuple):
    """An answer, read to its end."""

    status: int
    text: str
    location: str


class Http:
    """Requests to one frontend. Each is bounded in time; all together keep to the rate."""

    def __init__(self, config: DcacheConfig, refusal: Refusal | None = None) -> None:
        self._config = config
        self._tls = config.tls.context()
        self._proxy = proxy_for(config.endpoint)
        self._refusal = refusal or Refusal()
        self._pace = _Pace(config.request_rate)
        self._logged_at = -math.inf
        self.ahead = 0.0
        """By how many seconds the server's clock is ahead of ours, to about one."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            # Not compressed: a small body that unpacks to a huge one could not be bounded.
            headers={hdrs.USER_AGENT: USER_AGENT, hdrs.ACCEPT_ENCODING: "identity"},
            auto_decompress=False,
        )
        self._login = Login(self._config, self._tls, self._session, self._refusal)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None, *, most: int = MOST_BYTES) -> Any:
        """Return the JSON at `path`, which is encoded, of at most `most` bytes.

        Raise Missing, Denied, Refused, Unanswered.
        """
        answer = await self.ask("GET", path, query=query, most=most)
        try:
            return decode(answer.text)
        except (ValueError, RecursionError):
            raise Unanswered(f"GET {path}: not JSON; is `endpoint` dCache's REST API?") from None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        send: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        known: Collection[int] = (),
        most: int = MOST_BYTES,
    ) -> Response:
        """Make a request and return its answer when that is 2xx or `known`. `path` is encoded.

        Raise Missing, Denied, Refused, Unanswered.
        """
        url = self._url(path).with_query(query) if query else self._url(path)
        for _ in range(2):
            headers = {hdrs.ACCEPT: "application/json", **await self._turn()}
            sent = time.time()
            try:
                async with self._session.request(
                    method, url, json=send, headers=headers, allow_redirects=False, proxy=self._proxy
                ) as response:
                    # JSON is UTF-8 (RFC 8259), whatever the header says.
                    text = (await body_of(response, most)).decode(errors="replace")
                    answer = Response(response.status, text, response.headers.get(hdrs.LOCATION, ""))
                    self._note_clock(response.headers.get(hdrs.DATE), sent)
                    pause = response.headers.get(hdrs.RETRY_AFTER)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Unanswered(f"{method} {path}: {reason_of(error)}") from None
            # A 429 without a pause may have another reason.
            blocked = answer.status == 429 and pause is not None
            if not blocked and (200 <= answer.status < 300 or answer.status in known):
                self._login.accepted()
                return answer
            reason = self._describe(f"{method} {path}", answer.status, answer.text)
            await self._judge(answer.status, reason, headers, pause)
        raise Refused(reason)

    def _url(self, path: str) -> URL:
        return URL(f"{self._config.endpoint}{path}", encoded=True)

    def _describe(self, request: str, status: int, text: str) -> str:
        """Return what an answer says that is no success: its status, and dCache's message.

        Readiness shows that to anyone, so any other text, such as a proxy's page, is for the log alone.
        """
        said, now = message(text), time.monotonic()
        if not said and text and now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            _log.warning(
                "dcache: an answer without a message of dCache's: does a proxy between answer so?",
                request=request,
                status=status,
                text=excerpt(text),
            )
        return excerpt(f"{request} answered {status}: {said}")

    async def _turn(self) -> dict[str, str]:
        """Return, once the next request may begin, the headers that log it in. Raise Refused, Unanswered."""
        await self._pace.turn()
        return await self._login.headers()

    async def _judge(
        self, status: int, reason: str, headers: Mapping[str, str], retry_after: str | None
    ) -> None:
        """Raise what an answer means, unless the request is worth making again with a new credential."""
        if status == 401:
            await self._login.renew(headers, reason)
            return
        if status == 429 or (status == 503 and retry_after is not None):
            self._hold(retry_after)
        raise failure_of(status, reason)

    def _hold(self, retry_after: str | None) -> None:
        """Begin no request for as long as dCache says, or for a second."""
        self._pace.hold(_seconds(retry_after))

    def _note_clock(self, date: str | None, sent: float) -> None:
        """Compare clocks. The header gives whole seconds, so a difference below one is taken for none."""
        try:
            if date is not None:
                theirs, ours = parsedate_to_datetime(date).timestamp(), time.time()
                self.ahead = 0.0 if theirs <= ours and sent <= theirs + 1 else theirs - ours
        except (ValueError, OverflowError, OSError):
            pass  # The header is no date.

    def now(self) -> float:
        """Return the server's time, in seconds since 1970 UTC, as far as its answers show it."""
        return time.time() + self.ahead


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
        """Begin no request for `seconds`."""
        self._next = max(self._next, time.monotonic() + seconds)


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 1.0
