"""dCache's REST API as this source uses it: channels and watches, look-ups and listings, and the stream."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import httpx
from aiohttp import hdrs
from httpx_sse import EventSource
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
from bridge.sources.dcache.config import BearerAuth, DcacheConfig, X509Auth
from bridge.sources.dcache.watches import key_of
from bridge.telemetry.logging import excerpt

ANSWER_SECONDS = 30.0
"""For any answer but the stream; a page of a listing is the longest."""
CONNECT_SECONDS = 10.0
STREAM_ANSWER_SECONDS = 30.0
_REREAD_SECONDS = 60.0
"""After which a token's file is read again."""
_LONGEST_PAUSE = 60.0
"""Seconds of `Retry-After` believed at most; who was blocked is let in again after 20 by default."""
_LATE = 0.05
TICK_SECONDS = 20.0
"""Between two ticks of the metronome. dCache itself sends nothing on a quiet channel."""


class Unanswered(Exception):  # noqa: N818 - a state of the connection more than a fault
    """No answer, or one that asks to come again: it is worth trying later."""


class Refused(Unanswered):
    """The credential is missing or no good. dCache blocks an address that is refused three times in 20 s
    (RateLimitedHandlerList.java), so nobody should hurry to try again."""


class Denied(Exception):  # noqa: N818
    """This user may not."""


class Missing(Exception):  # noqa: N818
    """It is not there."""


class ChannelGone(Exception):  # noqa: N818
    """The channel is no more: its time was over, or the frontend was restarted."""


class Limits(NamedTuple):
    """What the site allows of channels."""

    per_user: int
    longest_timeout: int
    """Seconds a channel may live with nobody connected."""


class Entry(NamedTuple):
    """What the namespace tells of one file or directory."""

    name: str
    kind: str
    """`REGULAR`, `DIR`, `LINK` or `SPECIAL`."""
    pnfsid: str
    size: int | None
    """None while it is being written."""
    mtime: int
    """Milliseconds since 1970 UTC."""


class Connection:
    """One user at one frontend. Every call is bounded in time; all requests together keep to the rate."""

    def __init__(self, config: DcacheConfig) -> None:
        self._config = config
        self._tls = config.tls.context()
        self._pace = _Pace(config.request_rate)
        self._bearer = _bearer(config, self._post)
        self._basic: str | None = None
        self._certificate_changed = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._streaming: httpx.AsyncClient | None = None
        self.ahead = 0.0
        """By how many seconds the server's clock is ahead of ours, to about one."""

    async def __aenter__(self) -> Connection:
        self._load_certificate()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            headers={hdrs.USER_AGENT: f"oscar-event-bridge/{__version__}"},
            trust_env=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streaming is not None:
            await self._streaming.aclose()
        if self._session is not None:
            await self._session.close()

    # Channels

    async def limits(self) -> Limits:
        """Ask what the site allows."""
        channels = _mapping(await self._get("/events")).get("channels")
        lifetime = _mapping(_mapping(channels).get("lifetimeWhenDisconnected"))
        return Limits(int(_mapping(channels).get("maximumPerUser") or 0), int(lifetime.get("maximum") or 0))

    async def channels(self, client_id: str | None = None) -> Sequence[str]:
        """Give the ids of this user's channels, of one `client_id` or of all."""
        found = await self._get("/events/channels", {} if client_id is None else {"client-id": client_id})
        return [str(url).rstrip("/").rpartition("/")[2] for url in found] if isinstance(found, list) else []

    async def make_channel(self, client_id: str) -> str:
        """Make a channel and give its id. Raises Denied where the user has too many."""
        answer = await self._ask("POST", "/events/channels", send={"client-id": client_id}, known={201, 429})
        if answer.status == 429:
            raise Denied(
                "dCache lets this user have no more channels (429): remove some, or use another user"
            )
        return answer.location.rstrip("/").rpartition("/")[2]

    async def has_channel(self, channel: str) -> bool:
        """Tell whether it is still there, and ours."""
        try:
            await self._get(self._channel(channel))
        except (Missing, Denied):
            return False
        return True

    async def set_timeout(self, channel: str, seconds: int) -> None:
        """Let the channel live for `seconds` with nobody connected. Raises Missing."""
        await self._ask("PATCH", self._channel(channel), send={"timeout": seconds})

    async def delete_channel(self, channel: str) -> None:
        """End a channel; one that is gone is well too."""
        try:
            await self._ask("DELETE", self._channel(channel))
        except Missing:
            pass

    # Subscriptions

    async def watch(self, channel: str, path: str, flags: Sequence[str]) -> str:
        """Watch a directory and give its subscription; one that was watched already is so again.

        Raises Missing when the path is gone, Denied when it may not be read, ChannelGone.
        """
        selector = {"path": path, "flags": [*flags, "IN_ONLYDIR"]}
        answer = await self._ask(
            "POST",
            f"{self._channel(channel)}/subscriptions/inotify",
            send=selector,
            known={201, 303, 400, 404},
        )
        if answer.status == 404:
            raise ChannelGone(f"channel {channel} is gone")
        if answer.status != 400:
            return answer.location
        reason = _message(answer.text)
        if "permission" in reason.lower() or "not allowed" in reason.lower():
            raise Denied(reason)
        raise Missing(reason)

    async def unwatch(self, channel: str, key: str) -> None:
        """End the subscription named `key` (see `watches.key_of`); one that is gone is well too."""
        try:
            await self._ask("DELETE", f"{self._channel(channel)}/subscriptions/{key}")
        except Missing:
            pass

    async def start_metronome(self, channel: str) -> bool:
        """Have the channel tick, unless it does; False where this dCache has no metronome.

        A tick has an id as any event, so it shows that the stream is alive, and from where to resume.
        """
        told = await self._get(f"{self._channel(channel)}/subscriptions")
        if isinstance(told, list) and any(key_of(str(url)).startswith("metronome/") for url in told):
            return True
        answer = await self._ask(
            "POST",
            f"{self._channel(channel)}/subscriptions/metronome",
            send={"delay": TICK_SECONDS, "message": "tick"},
            known={201, 303, 400, 404},
        )
        return answer.status < 400

    # Namespace

    async def look_up(self, path: str) -> Entry:
        """Ask what is at `path` now. Raises Missing, Denied, Unanswered."""
        found = _entry(path.rpartition("/")[2], _mapping(await self._get(_namespace(path))))
        if found is None:
            raise Unanswered(f"{path}: not what a look-up answers")
        return found

    async def list_page(self, path: str, *, offset: int, limit: int) -> Sequence[Entry]:
        """List a part of a directory. Raises Missing (no directory any more), Denied, Unanswered."""
        query = {"children": "true", "offset": str(offset), "limit": str(limit)}
        told = _mapping(await self._get(_namespace(path), query))
        if told.get("fileType") != "DIR":
            raise Missing(f"{path} is no directory")
        children = told.get("children")
        entries = [_entry(None, _mapping(child)) for child in children] if isinstance(children, list) else []
        return [entry for entry in entries if entry is not None]

    # The stream

    @asynccontextmanager
    async def stream(
        self, channel: str, last_id: str | None, *, silence: float
    ) -> AsyncIterator[EventSource]:
        """Connect to the channel's events, those after `last_id` first.

        Reading raises httpx.ReadTimeout after `silence` seconds without a byte, httpx.HTTPError when the
        connection breaks. Raises ChannelGone, Unanswered, Refused.
        """
        self._load_certificate()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **await self._authorization()}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        if self._streaming is None:
            self._streaming = httpx.AsyncClient(
                verify=self._tls, headers={"User-Agent": f"oscar-event-bridge/{__version__}"}
            )
        timeout = httpx.Timeout(CONNECT_SECONDS, read=silence)
        url = f"{self._config.endpoint}{self._channel(channel)}"
        try:
            request = self._streaming.build_request("GET", url, headers=headers, timeout=timeout)
            async with asyncio.timeout(STREAM_ANSWER_SECONDS):
                response = await self._streaming.send(request, stream=True)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise Unanswered(f"the stream: {_reason(error)}") from None
        try:
            if response.status_code in (403, 404):
                raise ChannelGone(f"channel {channel} is gone, or another user's ({response.status_code})")
            if response.status_code != 200:
                await self._judge(response.status_code, f"the stream: {response.status_code}", headers, None)
            yield EventSource(response)
        finally:
            await response.aclose()

    # One request

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        answer = await self._ask("GET", path, query=query)
        try:
            return json.loads(answer.text)
        except ValueError:
            raise Unanswered(f"GET {path}: not JSON; is `endpoint` dCache's REST API?") from None

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        send: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        known: frozenset[int] | set[int] = frozenset(),
    ) -> _Told:
        """Make a request and give its answer when that is 2xx or `known`. `path` is encoded."""
        assert self._session is not None  # noqa: S101 - made on entering
        url = URL(f"{self._config.endpoint}{path}", encoded=True)
        if query:
            url = url.with_query(query)
        for attempt in (1, 2):
            await self._pace.turn()
            self._load_certificate()
            headers = {"Accept": "application/json", **await self._authorization()}
            sent = time.time()
            try:
                async with self._session.request(
                    method, url, json=send, headers=headers, allow_redirects=False
                ) as response:
                    text = await response.text(errors="replace")
                    told = _Told(response.status, text, response.headers.get(hdrs.LOCATION, ""))
                    self._note_clock(response.headers.get(hdrs.DATE), sent)
                    pause = response.headers.get(hdrs.RETRY_AFTER)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Unanswered(f"{method} {path}: {_reason(error)}") from None
            blocked = told.status == 429 and pause is not None  # no more channels is a 429 without
            if not blocked and (200 <= told.status < 300 or told.status in known):
                return told
            what = excerpt(f"{method} {path} answered {told.status}: {_message(told.text)}")
            if await self._judge(told.status, what, headers, pause) and attempt == 1:
                continue
            break
        raise Refused(what)

    async def _judge(
        self, status: int, what: str, headers: Mapping[str, str], retry_after: str | None
    ) -> bool:
        """Raise what an answer means; True when the request is worth making again with a new credential."""
        if status == 404:
            raise Missing(what)
        if status == 403:
            raise Denied(what)
        if status == 401:
            if await self._renewed(headers.get(hdrs.AUTHORIZATION, "")):
                return True
            raise Refused(what)
        if status == 429:
            self._pace.hold(_seconds(retry_after))
        raise Unanswered(what)

    # Credentials

    async def _authorization(self) -> dict[str, str]:
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

    async def _renewed(self, used: str) -> bool:
        """Tell whether there is another credential than `used`, which was refused."""
        try:
            if self._bearer is not None:
                return await self._bearer.renew(used) is not None
            if isinstance(self._config.auth, BasicAuth):
                self._basic = await basic(self._config.auth)
                return self._basic != used
        except CredentialError as error:
            _raise(error)
        return False

    def _load_certificate(self) -> None:
        """Take up a client certificate that was renewed. New connections use it."""
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

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        assert self._session is not None  # noqa: S101 - made on entering
        try:
            async with self._session.post(url, data=form, headers=headers, allow_redirects=False) as answer:
                return Reply(answer.status, await answer.text(errors="replace"), None)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = f"token endpoint: {_reason(error)}"
            raise NoCredentialError(Answer(Verdict.UNAVAILABLE, "connect", detail)) from None

    def _note_clock(self, date: str | None, sent: float) -> None:
        """Compare clocks. The header tells whole seconds, so a difference below one is taken for none."""
        try:
            if date is not None:
                told = parsedate_to_datetime(date).timestamp()
                self.ahead = 0.0 if told - time.time() <= 0 <= told + 1 - sent else told - time.time()
        except ValueError:
            pass

    def now(self) -> float:
        """Give the server's time, in seconds since 1970 UTC, as far as its answers tell it."""
        return time.time() + self.ahead

    def seconds_left(self) -> float:
        """Seconds until the access token expires; infinite where none does, NaN while there is none."""
        return math.inf if self._bearer is None else self._bearer.seconds_left()

    @staticmethod
    def _channel(channel: str) -> str:
        return f"/events/channels/{quote(channel, safe='')}"


class _Told(NamedTuple):
    status: int
    text: str
    location: str


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


def _namespace(path: str) -> str:
    return f"/namespace{quote(path)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _entry(name: str | None, told: Mapping[str, Any]) -> Entry | None:
    """Read what the namespace tells; None when it lacks what every entry has."""
    found = name if name is not None else told.get("fileName")
    kind, pnfsid, size, mtime = (told.get(key) for key in ("fileType", "pnfsId", "size", "mtime"))
    if not isinstance(found, str) or not isinstance(kind, str) or not isinstance(pnfsid, str):
        return None
    return Entry(
        found,
        kind,
        pnfsid,
        size if isinstance(size, int) else None,
        mtime if isinstance(mtime, int) else 0,
    )


def _message(text: str) -> str:
    """Give what dCache's JSON for an error says, in its older or its newer form (RFC 7807); else the text."""
    try:
        told = _mapping(json.loads(text))
        messages = [str(_mapping(one).get("message")) for one in told.get("errors") or ()]
        return "; ".join(messages) or str(told.get("detail") or told.get("title") or text)
    except (ValueError, TypeError):
        return text


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 1.0


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not believed: {error.verify_message}"
    return excerpt(str(error)) or type(error).__name__
