"""One OSCAR cluster: its connections, its credentials, and what it tells of itself."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import structlog
from aiohttp import hdrs
from yarl import URL

from bridge import __version__
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
    no_answer,
    retry_after,
    unanswered,
)
from bridge.destinations.oscar.auth import ask_agent, given_token
from bridge.destinations.oscar.config import (
    ClusterConfig,
    ServiceTokenAuth,
)
from bridge.destinations.oscar.exchange import CONNECT_SECONDS, EXCERPT_BYTES, Head
from bridge.destinations.oscar.proxied import NETWORK_ERRORS, Proxied, start_of
from bridge.destinations.oscar.proxied import session as new_session
from bridge.destinations.oscar.throttle import Throttle
from bridge.destinations.oscar.wire import Wire
from bridge.net.bodies import body_of
from bridge.net.proxies import proxy_for
from bridge.net.unanswered import why_unanswered
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_FIRST_TO_NAME_JOBS = (4, 1, 0)
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")

_HEADERS: dict[str, str] = {
    hdrs.USER_AGENT: f"oscar-event-bridge/{__version__}",
    hdrs.ACCEPT_ENCODING: "identity",
}
"""Of every request."""
_MANAGEMENT_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=CONNECT_SECONDS)
_LISTING_TIMEOUT = aiohttp.ClientTimeout(total=300, connect=CONNECT_SECONDS)
"""A page of jobs waits in OSCAR for its throttle; 300 s is what OSCAR itself allows (WRITE_TIMEOUT)."""
_LONGEST_REPLY = 4 << 20
"""Bytes of a management answer that are read: a service's definition carries its script."""
_LONGEST_GRANT = 1 << 20
"""Bytes of a token endpoint's answer that are read."""


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
    """One cluster's connections and credentials; an async context manager."""

    def __init__(self, key: str, config: ClusterConfig, *, metrics: Metrics | None = None) -> None:
        self.key = key
        self.endpoint = URL(config.endpoint)
        # Not by aiohttp's `trust_env`: it sends passwords of ~/.netrc, which nobody configured.
        self.proxy = proxy_for(self.endpoint)
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._calls: Wire | Proxied | None = None
        self._issuer_context: ssl.SSLContext | None = None
        self._service_tokens: dict[tuple[str, str | None], Bearer] = {}
        self._introducing = asyncio.Lock()
        self._bearer: Bearer | None = None
        """One bearer for all services; None where each has its own, in its definition."""
        self.throttle = Throttle()
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
        if metrics is not None and self._bearer is not None:
            metrics.credential_ok.take(key, call=self._bearer.works)

    async def __aenter__(self) -> Self:
        tls, auth = self._config.tls, self._config.auth
        secure = self.endpoint.scheme == "https"  # reading the system's authorities takes time and memory
        if secure and not tls.verify:
            _log.warning(
                "TLS is not verified: any server that answers gets the credentials",
                cluster=self.key,
                endpoint=str(self.endpoint),
            )
        if isinstance(auth, OidcAuth) and auth.token_endpoint.startswith("https:"):
            self._issuer_context = tls.issuer_context()
        context = tls.context() if secure else None
        self._session = new_session(tls=context, headers=_HEADERS)
        self._calls = Wire(self.endpoint, context) if self.proxy is None else Proxied(self.proxy, context)
        return self

    async def __aexit__(self, *_: object) -> None:
        session, calls = self._session, self._calls
        self._session = self._calls = None
        if calls is not None:
            await calls.close()
        if session is not None:
            await session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session of all but `/job` and `/run`. Raises RuntimeError outside the context."""
        if self._session is None:
            raise RuntimeError(f"cluster {self.key} is not open")
        return self._session

    @property
    def calls(self) -> Wire | Proxied:
        """What makes the calls of `/job` and `/run`. Raises RuntimeError outside the context."""
        if self._calls is None:
            raise RuntimeError(f"cluster {self.key} is not open")
        return self._calls

    def head(self, url: URL, authorization: str, content_type: str) -> Head:
        """Make the head of a call."""
        return Head(url, _HEADERS | {hdrs.AUTHORIZATION: authorization, hdrs.CONTENT_TYPE: content_type})

    @property
    def manages(self) -> bool:
        """Whether the credentials open the management API; a bare service token does not."""
        return not isinstance(self._config.auth, ServiceTokenAuth)

    @property
    def lists_all_jobs(self) -> bool:
        """Whether it lists all jobs of a service to these credentials: to a user it lists the user's."""
        return isinstance(self._config.auth, BasicAuth)

    def bearer(self, service: str, owner: str | None) -> Bearer:
        """Return the bearer that opens `service`; one for all who ask for the same."""
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

    async def introduce(self) -> None:
        """Make a direct request, at which OSCAR makes what `/job` needs of a user. Raises NoCredentialError.

        One after the other: of those that race to be a user's first OSCAR lets all but one fail.
        """
        async with self._introducing:
            await self.info()

    async def definition(self, service: str, owner: str | None) -> dict[str, Any]:
        """Read a service's definition, secrets and all (`GET /system/services/{service}`).

        Raises NoCredentialError; its answer has cause `http_404` when there is no such service.
        """
        url = self.endpoint / "system" / "services" / service
        definition = await self._get_object(url if owner is None else url.with_query(owner=owner))
        if owner is not None and definition.get("owner", owner) != owner:
            raise refused(f"cluster {self.key} has a service {service}, but not of owner {owner}")
        return definition

    async def jobs_page(self, service: str, token: str) -> dict[str, Any]:
        """Read a page of the listing of a service's jobs (`GET /system/logs/{service}`).

        `token` is the `next_page` of the one before it, or empty. Raises NoCredentialError.
        """
        url = self.endpoint / "system" / "logs" / service
        return await self._get_object(url.with_query(page=token) if token else url, _LISTING_TIMEOUT)

    async def log_status(self, service: str, job: str) -> int:
        """Return the status with which the log of a job is answered: 200, 404 or 500. It is not read.

        Raises NoCredentialError.
        """
        url = self.endpoint / "system" / "logs" / service / job
        reply = await self._manage(hdrs.METH_GET, url, _LISTING_TIMEOUT, expected=(200, 404, 500), longest=0)
        return reply.status

    async def job_log(self, service: str, job: str) -> str:
        """Read the log of a job (`GET /system/logs/{service}/{job}`). Raises NoCredentialError."""
        return await self._get_text(self.endpoint / "system" / "logs" / service / job, _LISTING_TIMEOUT)

    async def bucket_page(self, bucket: str, token: str) -> dict[str, Any]:
        """Read a page of the objects in the cluster's MinIO (`GET /system/buckets/{bucket}`).

        `token` is the `next_page` of the one before it, or empty. Raises NoCredentialError.
        """
        url = self.endpoint / "system" / "buckets" / bucket
        return await self._get_object(url.with_query(page=token) if token else url)

    async def remove_job(self, service: str, job: str) -> None:
        """Delete a job, unless it is gone (`DELETE /system/logs/{service}/{job}`).

        Raises NoCredentialError.
        """
        url = self.endpoint / "system" / "logs" / service / job
        await self._manage(hdrs.METH_DELETE, url, _LISTING_TIMEOUT, expected=(204, 404))

    async def opens(self, service: str, authorization: str) -> bool | None:
        """Ask whether a service token opens `service` (`GET /system/services/{service}/auth`).

        None where this can't be asked: OSCAR has it from 4.1.0 on (pkg/utils/auth/service_token.go), and what
        stands in front may keep it from us. Raises NoCredentialError.
        """
        url = self.endpoint / "system" / "services" / service / "auth"
        reply = await self._ask(hdrs.METH_GET, url, authorization)
        if reply.status == 403 or (reply.status == 404 and reply.text):  # a router's page, of no such route
            return None
        return reply.status == 200

    async def _token_of(self, service: str, owner: str | None) -> Grant:
        token = (await self.definition(service, owner)).get("token")
        if not isinstance(token, str) or not token:
            raise refused(f"the definition of {service} on cluster {self.key} has no token")
        return Grant(token)

    async def _get_object(
        self, url: URL, timeout: aiohttp.ClientTimeout = _MANAGEMENT_TIMEOUT
    ) -> dict[str, Any]:
        """Read a JSON object of the management API. Raises NoCredentialError."""
        text = await self._get_text(url, timeout)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise refused(f"GET {url.path} answered 200 without a JSON object: is the endpoint OSCAR's?")
        return value

    async def _get_text(self, url: URL, timeout: aiohttp.ClientTimeout) -> str:
        """Read an answer of the management API. Raises NoCredentialError."""
        return (await self._manage(hdrs.METH_GET, url, timeout, expected=(200,))).text

    async def _manage(
        self,
        method: str,
        url: URL,
        timeout: aiohttp.ClientTimeout,
        *,
        expected: Collection[int],
        longest: int = _LONGEST_REPLY,
    ) -> Reply:
        """Call the management API, with one renewal of a token that is refused; return the answer.

        Raises NoCredentialError where its status is none of those `expected`.
        """
        auth, bearer = self._config.auth, self._bearer
        if isinstance(auth, BasicAuth):
            authorization = await basic(auth)
        elif bearer is not None and self.manages:
            authorization = await bearer.get()
        else:
            raise refused("a service token does not open the management API")
        reply = await self._ask(method, url, authorization, timeout, longest)
        if reply.status == 401 and bearer is not None and (renewed := await bearer.renew(authorization)):
            reply = await self._ask(method, url, renewed, timeout, longest)
        if reply.status not in expected:
            verdict = judge_management(reply.status)
            cause = "credentials" if reply.status in (401, 403) else f"http_{reply.status}"
            detail = excerpt(
                f"cluster {self.key}: {method} {url.path} answered {reply.status}: {reply.text}",
                token_in(authorization),
            )
            raise NoCredentialError(Answer(verdict, cause, detail, reply.status, reply.retry_after))
        return reply

    async def _ask(
        self,
        method: str,
        url: URL,
        authorization: str,
        timeout: aiohttp.ClientTimeout = _MANAGEMENT_TIMEOUT,
        longest: int = _LONGEST_REPLY,
    ) -> Reply:
        headers = {hdrs.AUTHORIZATION: authorization}
        return await self._reply(method, url, longest, headers=headers, proxy=self.proxy, timeout=timeout)

    async def _post_form(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        where = URL(url)
        return await self._reply(
            hdrs.METH_POST,
            where,
            _LONGEST_GRANT,
            data=aiohttp.FormData(form),
            headers=headers,
            proxy=proxy_for(where),
            ssl=self._issuer_context or True,
        )

    async def _reply(self, method: str, url: URL, longest: int, **options: Any) -> Reply:
        """Make a request whose answer has at most `longest` bytes; by 0 it is not read.

        Raises NoCredentialError.
        """
        options.setdefault("timeout", _MANAGEMENT_TIMEOUT)
        request = f"{method} {url.host}{url.path}"
        try:
            async with self.session.request(method, url, allow_redirects=False, **options) as response:
                if response.status == 200:
                    raw = await body_of(response, longest) if longest else b""
                else:  # only an excerpt of it is told
                    raw = await start_of(response, EXCERPT_BYTES)
                pause = retry_after(response.headers.get(hdrs.RETRY_AFTER))
                return Reply(response.status, raw.decode("utf-8", "replace"), pause)
        except NETWORK_ERRORS as error:
            answer = unanswered(Verdict.UNAVAILABLE, no_answer(error), request, why_unanswered(error))
            raise NoCredentialError(answer) from error


def token_in(authorization: str) -> str:
    return authorization.partition(" ")[2]
