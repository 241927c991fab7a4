"""The OSCAR cluster as a destination: one HTTP session a cluster, one attempt an `invoke`."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
import structlog
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from multidict import istr
from yarl import URL

from bridge import __version__
from bridge.core.event import Event
from bridge.core.identity import invocation_name
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
    refused,
)
from bridge.destinations.oscar.answers import (
    judge_management,
    judge_status,
    no_answer,
    retry_after,
    unanswered,
)
from bridge.destinations.oscar.auth import ask_agent, given_token
from bridge.destinations.oscar.config import (
    ClusterConfig,
    ServiceConfig,
    ServiceTokenAuth,
)
from bridge.destinations.oscar.deadline import Deadline
from bridge.destinations.oscar.payload import PayloadError, encode
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DELEGATION_HEADER = istr("X-Delegated-Job-ID")
"""Names the Job, from OSCAR 4.1.0 on (pkg/handlers/job.go, DelegationHeader)."""
_FIRST_TO_NAME_JOBS = (4, 1, 0)
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")

_CONNECT_SECONDS = 10.0
_MANAGEMENT_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=_CONNECT_SECONDS)
_ATTEMPT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
"""The rest of an attempt's time is the `Deadline`'s."""
_MANAGEMENT_CONNECTIONS = 4
_ACCEPTED = Answer(Verdict.ACCEPTED, status=201)
_EXCERPT_BYTES = 4096
_LONGEST_REPLY = 4 << 20
"""Bytes of a management answer: a service's definition carries its script."""

_NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What a cluster tells of itself."""

    version: str
    names_jobs: bool | None
    """Whether it names jobs as it is told, so that an event has one; None for a version not understood."""


def names_jobs(version: str) -> bool | None:
    """Tell whether OSCAR `version` names jobs as it is told; None for a version not understood."""
    found = _VERSION.match(version)
    return tuple(int(part) for part in found.groups()) >= _FIRST_TO_NAME_JOBS if found else None


class OscarCluster:
    """One cluster's connections and credentials; an async context manager.

    `connections` is the sum of its lanes' concurrency, so that no attempt ever waits for a connection.
    Keep-alive connections are let go after 15 idle seconds, before common servers hang up on them
    (60 s and more), since a request on a connection that is just being closed has an unknown outcome.
    """

    def __init__(
        self, key: str, config: ClusterConfig, *, connections: int, metrics: Metrics | None = None
    ) -> None:
        self.key = key
        self.endpoint = URL(config.endpoint)
        # aiohttp's own `trust_env` asks the environment, and ~/.netrc, in a thread for every request.
        self.proxy = _proxy(self.endpoint)
        self._config = config
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._issuer_context: ssl.SSLContext | None = None
        self._service_tokens: dict[tuple[str, str | None], Bearer] = {}
        self._bearer: Bearer | None = None
        """One bearer for all services; None where each has its own, in its definition."""
        auth = config.auth
        if isinstance(auth, ServiceTokenAuth):
            self._bearer = Bearer(lambda: given_token(auth))
        elif not isinstance(auth, BasicAuth):
            self._bearer = Bearer(
                RefreshTokenGrant(auth, self._post_form)
                if isinstance(auth, OidcAuth)
                else lambda: ask_agent(auth)
            )
            if metrics is not None:
                metrics.credential_expiry.labels(key).set_function(self._bearer.seconds_left)

    async def __aenter__(self) -> Self:
        tls, auth = self._config.tls, self._config.auth
        secure = self.endpoint.scheme == "https"  # reading the system's authorities takes time and memory
        if secure and not tls.verify:
            log.warning("tls_not_verified", cluster=self.key, endpoint=str(self.endpoint))
        if isinstance(auth, OidcAuth) and auth.token_endpoint.startswith("https:"):
            # The issuer gets a refresh token: always verified, by the system's authorities or the cluster's.
            self._issuer_context = ssl.create_default_context()
            tls.trust(self._issuer_context)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections + _MANAGEMENT_CONNECTIONS,
                ssl=tls.context() if secure else True,
                keepalive_timeout=15,
            ),
            headers={
                hdrs.USER_AGENT: f"oscar-event-bridge/{__version__}",
                hdrs.ACCEPT_ENCODING: "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session. Raises RuntimeError outside the context."""
        if self._session is None:
            raise RuntimeError(f"cluster {self.key} is not open")
        return self._session

    @property
    def manages(self) -> bool:
        """Whether the credentials open the management API; a bare service token does not."""
        return not isinstance(self._config.auth, ServiceTokenAuth)

    def bearer(self, service: str, owner: str | None) -> Bearer:
        """Give the bearer that opens `service`; one for all who ask for the same."""
        if self._bearer is not None:
            return self._bearer
        key = (service, owner)
        if key not in self._service_tokens:
            self._service_tokens[key] = Bearer(lambda: self._token_of(service, owner))
        return self._service_tokens[key]

    async def info(self) -> ClusterInfo:
        """Ask the cluster for its version (`GET /system/info`). Raises NoCredentialError."""
        told = str((await self._get_object(self.endpoint / "system" / "info")).get("version", ""))
        return ClusterInfo(told, names_jobs(told))

    async def definition(self, service: str, owner: str | None) -> dict[str, Any]:
        """Read a service's definition, secrets and all (`GET /system/services/{service}`).

        Raises NoCredentialError; its answer has cause `http_404` when there is no such service.
        """
        url = self.endpoint / "system" / "services" / service
        definition = await self._get_object(url if owner is None else url.with_query(owner=owner))
        if owner is not None and definition.get("owner", owner) != owner:
            raise refused(f"cluster {self.key} has a service {service}, but not of owner {owner}")
        return definition

    async def announce(self, services: Sequence[OscarService]) -> None:
        """Log what "once" means on this cluster for `services`. Never raises for what the cluster does."""
        if not self.manages:
            log.info(
                "cluster",
                cluster=self.key,
                once="one job an event if OSCAR is 4.1.0 or later and the service not federated",
                detail="a service token can't ask for the version",
            )
            return
        try:
            info = await self.info()
            federated = [service.name for service in services if await service.federated()]
        except NoCredentialError as error:
            log.warning("cluster_not_asked", cluster=self.key, cause=error.answer.cause, detail=str(error))
            return
        once = {
            True: "one job an event",
            False: "at least once: this OSCAR is older than 4.1.0",
            None: "one job an event if this version is 4.1.0 or later",
        }[info.names_jobs]
        log.info("cluster", cluster=self.key, version=info.version, once=once, at_least_once=federated)

    async def _token_of(self, service: str, owner: str | None) -> Grant:
        token = (await self.definition(service, owner)).get("token")
        if not isinstance(token, str) or not token:
            raise refused(f"the definition of {service} on cluster {self.key} has no token")
        return Grant(token)

    async def _get_object(self, url: URL) -> dict[str, Any]:
        """Read a JSON object of the management API, with one renewal of a token that is refused."""
        auth, bearer = self._config.auth, self._bearer
        if isinstance(auth, BasicAuth):
            authorization = await basic(auth)
        elif bearer is not None and self.manages:
            authorization = await bearer.get()
        else:
            raise refused("a service token does not open the management API")
        reply = await self._get(url, authorization)
        if reply.status == 401 and bearer is not None and (renewed := await bearer.renew(authorization)):
            reply = await self._get(url, renewed)
        if reply.status != 200:
            verdict = judge_management(reply.status)
            cause = "credentials" if reply.status in (401, 403) else f"http_{reply.status}"
            detail = excerpt(
                f"cluster {self.key}: GET {url.path} answered {reply.status}: {reply.text}",
                _token(authorization),
            )
            raise NoCredentialError(Answer(verdict, cause, detail, reply.status, reply.retry_after))
        try:
            value = json.loads(reply.text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise refused(f"GET {url.path} answered 200 without a JSON object: is the endpoint OSCAR's?")
        return value

    async def _get(self, url: URL, authorization: str) -> Reply:
        headers = {hdrs.AUTHORIZATION: authorization}
        return await self._reply(hdrs.METH_GET, url, headers=headers, proxy=self.proxy)

    async def _post_form(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        where = URL(url)
        return await self._reply(
            hdrs.METH_POST,
            where,
            data=aiohttp.FormData(form),
            headers=headers,
            proxy=_proxy(where),
            ssl=self._issuer_context or True,
        )

    async def _reply(self, method: str, url: URL, **options: Any) -> Reply:
        try:
            async with self.session.request(
                method, url, allow_redirects=False, timeout=_MANAGEMENT_TIMEOUT, **options
            ) as response:
                # Of what is no success only an excerpt is told.
                limit = _LONGEST_REPLY if response.status == 200 else _EXCERPT_BYTES
                text = await _start_of_body(response, limit)
                return Reply(response.status, text, retry_after(response.headers.get(hdrs.RETRY_AFTER)))
        except _NETWORK_ERRORS as error:
            cause, _ = no_answer(error)
            answer = unanswered(Verdict.UNAVAILABLE, cause, f"{method} {url.host}{url.path}", error)
            raise NoCredentialError(answer) from error


class OscarService:
    """One service of a cluster: the Destination of one lane.

    `key` is the service's key in the configuration; `trusted_sources` are the identities of the sources
    whose events may choose credentials.
    """

    def __init__(
        self, key: str, config: ServiceConfig, cluster: OscarCluster, *, trusted_sources: frozenset[str]
    ) -> None:
        self.name = config.service or key
        """OSCAR's name of it."""
        self._config = config
        self._cluster = cluster
        self._trusted_sources = trusted_sources
        self._mode = config.mode
        self._payload = config.payload
        self._max_bytes = config.event_bytes
        self._identity = config.identity(key)
        url = cluster.endpoint / config.mode / self.name
        self._url = url if config.owner is None else url.with_query(owner=config.owner)
        self._bearer = cluster.bearer(self.name, config.owner)
        self._deadline = Deadline(config.timeout_seconds)

    def prepare(self, event: Event) -> OscarInvocation:
        """Name the event's job, and encode what it gets."""
        trusted = event.source in self._trusted_sources
        name = invocation_name(event.source, event.id, self._identity)
        try:
            body = encode(event, mode=self._payload, trusted=trusted, max_bytes=self._max_bytes)
        except PayloadError as error:
            rejected = Answer(Verdict.REJECTED, error.cause, excerpt(str(error)))
            return OscarInvocation(self, name, b"", rejected)
        return OscarInvocation(self, name, body)

    async def attempt(self, name: str, body: bytes) -> Answer:
        """Make one attempt; a token that was refused is renewed once, and the attempt made again with it."""
        bearer = self._bearer
        try:
            authorization = bearer.current or await bearer.get()
            answer = await self._attempt(name, body, authorization)
            if self._about_the_token(answer) and (renewed := await bearer.renew(authorization)):
                answer = await self._attempt(name, body, renewed)
            if answer.status == 404 and self._mode == "run":
                return await self._look_for_the_service(answer)
        except NoCredentialError as error:
            return error.answer
        return answer

    async def federated(self) -> bool:
        """Ask whether other clusters may run its jobs, so that one event may have two.

        Raises NoCredentialError.
        """
        definition = await self._cluster.definition(self.name, self._config.owner)
        federation = definition.get("federation")
        return isinstance(federation, dict) and bool(federation.get("members"))

    def _about_the_token(self, answer: Answer) -> bool:
        """Tell whether another token could change this answer.

        A 401 always. An access token that expired, or is refused, shows as a 5xx on `/job` (job.go reads
        the user before it tests the error) and as a 404 on `/run` (run.go), so those count near its expiry.
        """
        status = answer.status
        if status is None or status < 400 or answer.verdict is Verdict.DUPLICATE:
            return False
        suspect = status >= 500 if self._mode == "job" else status == 404
        return status == 401 or (suspect and self._bearer.doubtful)

    async def _look_for_the_service(self, answer: Answer) -> Answer:
        """Tell the application's 404, which is about the event, from OSCAR's, which is not.

        A bare service token can't look: then it counts as OSCAR's, since a closed gate loses nothing,
        while all events of a service that is being made anew would become dead letters.
        """
        if not self._cluster.manages:
            return Answer(Verdict.REFUSED, answer.cause, answer.detail, answer.status)
        await self._cluster.definition(self.name, self._config.owner)
        return answer

    async def _attempt(self, name: str, body: bytes, authorization: str) -> Answer:
        payload = _Body(body)
        headers = {
            hdrs.AUTHORIZATION: authorization,
            hdrs.CONTENT_TYPE: "application/json" if body.startswith(b"{") else "application/octet-stream",
        }
        if self._mode == "job":
            headers[DELEGATION_HEADER] = name
        status, reason, text, pause, web_page = 0, "", "", None, False
        try:
            async with (
                self._deadline,
                self._cluster.session.post(
                    self._url,
                    data=payload,
                    headers=headers,
                    allow_redirects=False,
                    timeout=_ATTEMPT_TIMEOUT,
                    proxy=self._cluster.proxy,
                ) as response,
            ):
                status = response.status
                if status == 201 or (200 <= status < 300 and not (web_page := self._is_web_page(response))):
                    await _drain(response)
                else:
                    reason, pause = response.reason or "", retry_after(response.headers.get(hdrs.RETRY_AFTER))
                    text = await _start_of_body(response, _EXCERPT_BYTES)
        except _NETWORK_ERRORS as error:
            if not status:
                cause, may_be_sent = no_answer(error)
                harmless = (
                    self._mode == "job" or self._config.idempotent or not (may_be_sent and payload.started)
                )
                verdict = Verdict.UNAVAILABLE if harmless else Verdict.UNKNOWN
                return unanswered(verdict, cause, f"POST {self._url.path}", error, _token(authorization))
            # A body that does not end in time: the status has come, and counts.
        if status == 201:
            return _ACCEPTED
        if web_page:
            detail = excerpt(f"{status} {reason}, a web page: is the endpoint OSCAR's? {text}")
            return Answer(Verdict.REFUSED, f"http_{status}", detail, status)
        if 200 <= status < 300:
            return Answer(Verdict.ACCEPTED, status=status)
        if self._mode == "job" and status >= 400 and name in text and "already exists" in text:
            return Answer(Verdict.DUPLICATE, status=status)
        detail = excerpt(f"{status} {reason}: {text}", _token(authorization))
        return Answer(judge_status(self._mode, status, text), f"http_{status}", detail, status, pause)

    def _is_web_page(self, response: aiohttp.ClientResponse) -> bool:
        """Tell whether a proxy's login or maintenance page, or a dashboard, answers in OSCAR's place.

        `/job` answers 201 without a body; what `/run` answers is the application's own.
        """
        return self._mode == "job" and response.content_type == "text/html"


class OscarInvocation:
    """One event, named and encoded for one service."""

    __slots__ = ("_body", "_name", "_rejected", "_service")

    def __init__(self, service: OscarService, name: str, body: bytes, rejected: Answer | None = None) -> None:
        self._service = service
        self._name = name
        self._body = body
        self._rejected = rejected

    async def attempt(self) -> Answer:
        """Make one attempt, if what is to be sent can be sent at all."""
        return self._rejected or await self._service.attempt(self._name, self._body)


class _Body(aiohttp.BytesPayload):
    """A body that knows whether it went on its way: aiohttp sends the headers with its first bytes."""

    started = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self.started = True
        await super().write_with_length(writer, content_length)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the rest away, so that the connection can be kept; the status has told all that counts."""
    if response.content.at_eof():
        return
    try:
        async for _ in response.content.iter_any():
            pass
    except _NETWORK_ERRORS:
        response.close()


async def _start_of_body(response: aiohttp.ClientResponse, limit: int) -> str:
    """Read up to `limit` bytes as text; a body that breaks off has what came of it."""
    raw = bytearray()
    try:
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) >= limit:
                response.close()
                break
    except _NETWORK_ERRORS:
        response.close()
    return raw[:limit].decode("utf-8", "replace")


def _token(authorization: str) -> str:
    return authorization.partition(" ")[2]


def _proxy(url: URL) -> URL | None:
    """Find the proxy for `url` in the usual environment variables, as it is at the start."""
    if url.host is None or proxy_bypass(f"{url.host}:{url.port}"):
        return None
    proxy = getproxies().get(url.scheme)
    return None if proxy is None else URL(proxy)
