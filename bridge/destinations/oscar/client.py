"""OSCAR's services as destinations: an `attempt` makes one POST."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import structlog

from bridge.core.errors import reason
from bridge.core.event import Event
from bridge.core.identity import invocation_names
from bridge.core.ports import Answer, Verdict
from bridge.credentials import NoCredentialError
from bridge.destinations.oscar.answers import about_the_token, judge, needs_an_introduction
from bridge.destinations.oscar.cluster import OscarCluster, token_in
from bridge.destinations.oscar.config import ServiceConfig
from bridge.destinations.oscar.exchange import Head, NoReply, Reply
from bridge.destinations.oscar.payload import PayloadError, PayloadTooLargeError, encode
from bridge.telemetry.logging import excerpt

_log = structlog.get_logger(__name__)

_TELLS_NOTHING = (403, 500)
"""What the management API answers where several owners have a service of the name (pkg/backends/knative.go),
or this user may not see it."""
_BELIEVED_SECONDS = 60.0
"""How long a service that was there is taken to be, so that many refusals cost few calls."""


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
        self.makes_jobs = config.mode == "job"
        self._payload = config.payload
        self._max_bytes = config.event_bytes
        self._name = invocation_names(config.identity(key))
        url = cluster.endpoint / config.mode / self.name
        self._url = url if config.owner is None else url.with_query(owner=config.owner)
        self._path = self._url.path
        self._bearer = cluster.bearer(self.name, config.owner)
        self._seconds = config.timeout_seconds
        self._authorization = self._token = ""
        """Those of the heads."""
        self._heads: dict[bool, Head] = {}
        """By whether the body is JSON."""
        self._fresh = config.mode == "run" and not config.idempotent
        """Whether each call has a connection of its own, as one that may not be repeated must: on one that
        was kept the server may be hanging up, and a call that it never read looks like a lost answer."""
        self._throttle = cluster.throttle if config.mode == "job" else None
        self._looking = asyncio.Lock()
        self._looks = 0
        self._there = False
        """What the last look came to."""
        self._there_until = -math.inf
        """Monotonic time until which that it is there is believed."""

    def prepare(self, event: Event) -> OscarInvocation:
        """Name the event's job, and encode what it gets."""
        trusted = event.source in self._trusted_sources
        name = self._name(event.source, event.id)
        try:
            body = encode(event, mode=self._payload, trusted=trusted, max_bytes=self._max_bytes)
        except PayloadError as error:
            rejected = Answer(Verdict.REJECTED, error.cause, excerpt(str(error)))
            return OscarInvocation(self, name, b"", rejected)
        except Exception as error:  # noqa: BLE001 - it would come again and again, and end the process each time
            return OscarInvocation(self, name, b"", self._failed(error, Verdict.REJECTED))
        return OscarInvocation(self, name, body)

    def fits(self, event: Event) -> bool:
        """Return whether `event`, encoded, is no larger than a job can be started with."""
        trusted = event.source in self._trusted_sources
        try:
            encode(event, mode=self._payload, trusted=trusted, max_bytes=self._max_bytes)
        except PayloadTooLargeError:
            return False
        except PayloadError:  # its attempt tells what else is wrong with it
            pass
        return True

    def job_of(self, event: Event) -> str:
        """Name the job of `event`."""
        return self._name(event.source, event.id)

    @property
    def afterwards(self) -> float:
        """For how many seconds a job may still be made by a call that its caller has given up.

        OSCAR goes on with it when its turn comes, behind those whose callers began to wait before.
        """
        return 2 * self._seconds

    async def attempt(self, name: str, body: bytes) -> Answer:
        """Make one attempt, and once more where the answer is about the token, or may be.

        An event for which it fails in a way nobody foresaw fails alone.
        """
        bearer = self._bearer
        try:
            authorization = bearer.current or await bearer.get()
            answer = await self._post(name, body, authorization)
            if answer.verdict is Verdict.ACCEPTED:
                return answer
            return await self._look_after(answer, name, body, authorization)
        except NoCredentialError as error:
            return error.answer
        except Exception as error:  # noqa: BLE001 - likewise
            return self._failed(error, Verdict.UNKNOWN if self._fresh else Verdict.FAILED)

    def _failed(self, error: Exception, verdict: Verdict) -> Answer:
        why = reason(error)
        _log.exception("a call can't be made", service=self.name, reason=excerpt(why))
        detail = excerpt(f"defect in calling OSCAR: {why}")
        return Answer(verdict, "defect", detail, perhaps_its_own=verdict is Verdict.FAILED)

    async def _look_after(self, answer: Answer, name: str, body: bytes, authorization: str) -> Answer:
        """Ask once more where `answer` is about the token, or may be, and find out whose refusal it is.

        Raises NoCredentialError.
        """
        bearer = self._bearer
        if about_the_token(self._mode, answer, doubtful=bearer.doubtful(authorization)) and (
            another := await bearer.renew(authorization)
        ):
            answer = await self._post(name, body, another)
        if needs_an_introduction(self._mode, answer):
            await self._cluster.introduce()
            answer = await self._post(name, body, bearer.current or await bearer.get())
        if answer.status == 404 and self._mode == "run":
            return await self._look_after_a_404(answer, name, body)
        if answer.verdict is Verdict.REFUSED and answer.perhaps_its_own and self._mode == "job":
            return replace(answer, perhaps_its_own=await self._is_there())
        return answer

    @property
    def judged_by_output(self) -> bool:
        """Whether a job has succeeded if it has left an output, whatever its pod says."""
        return self._config.success == "output"

    async def definition(self) -> dict[str, Any]:
        """Read its definition. Raises NoCredentialError."""
        return await self._cluster.definition(self.name, self._config.owner)

    async def federated(self) -> bool:
        """Ask whether other clusters may run its jobs, so that one event may have two.

        Raises NoCredentialError.
        """
        federation = (await self.definition()).get("federation")
        return isinstance(federation, dict) and bool(federation.get("members"))

    async def _look_after_a_404(self, answer: Answer, name: str, body: bytes) -> Answer:
        """Tell the application's 404, which is about the event, from OSCAR's, which is not.

        By the look of it the application's: then OSCAR is only asked whether it has such a service. A bare
        service token can't ask, and needs not: since 4.0.0 it gets 401 for an unknown service.

        By the look of it OSCAR's, which could not find out about the access token: where the management API
        takes the token, OSCAR has it in its cache from then on, so what a second call answers is final. Where
        the API tells nothing of the service, whatever the token, it stays a refusal, perhaps of the event
        alone. Raises NoCredentialError.
        """
        if not self._cluster.manages:
            return answer
        try:
            await self._cluster.definition(self.name, self._config.owner)
        except NoCredentialError as error:
            if error.answer.status == 404 or answer.verdict is Verdict.REFUSED:
                if error.answer.status in _TELLS_NOTHING:
                    detail = excerpt(f"{answer.detail}; whose answer it is can't be told: {error}")
                    return replace(answer, detail=detail, perhaps_its_own=True)
                # OSCAR is away while its answer to the event still may be the application's.
                away = error.answer.verdict is Verdict.UNAVAILABLE and not error.answer.ours
                return replace(error.answer, perhaps_its_own=away)
            return answer
        if answer.verdict is not Verdict.REFUSED:
            return answer
        answer = await self._post(name, body, self._bearer.current or await self._bearer.get())
        if answer.status == 404 and answer.verdict is Verdict.REFUSED:
            return replace(answer, verdict=Verdict.REJECTED)
        return answer

    async def _is_there(self) -> bool:
        """Ask whether OSCAR has the service and takes the credentials: then a refusal may be of one event.

        Where it can't be told the event keeps its doubt, so that it holds no others of a service that accepts
        them. One asks at a time; those who come meanwhile share what is answered.
        """
        if monotonic() < self._there_until:
            return True
        seen = self._looks
        async with self._looking:
            if self._looks == seen:
                self._there = await self._look()
                self._looks += 1
                if self._there:
                    self._there_until = monotonic() + _BELIEVED_SECONDS
            return self._there

    async def _look(self) -> bool:
        try:
            if self._cluster.manages:
                await self._cluster.definition(self.name, self._config.owner)
                return True
            return await self._cluster.opens(self.name, await self._bearer.get()) is not False
        except NoCredentialError as error:
            return error.answer.status in _TELLS_NOTHING

    async def _post(self, name: str, body: bytes, authorization: str) -> Answer:
        if authorization != self._authorization:
            self._token = token_in(authorization)
            self._heads = {
                True: self._cluster.head(self._url, authorization, "application/json"),
                False: self._cluster.head(self._url, authorization, "application/octet-stream"),
            }
            self._authorization = authorization
        token = self._token  # of this call, whatever comes for others meanwhile
        came: Reply | NoReply
        accepted = False
        throttle = self._throttle
        if throttle is not None and throttle.is_wanted:
            throttle.began()
        else:
            throttle = None
        try:
            came = await self._cluster.calls.exchange(
                self._heads[body.startswith(b"{")],
                body,
                self._seconds,
                job=name if self.makes_jobs else "",
                fresh=self._fresh,
            )
            accepted = came.status == 201
        except NoReply as error:
            came = error.with_traceback(None)  # it would hold this frame, which holds it
        finally:
            if throttle is not None:
                throttle.ended(accepted=accepted)
        return judge(
            self._mode,
            name,
            came,
            idempotent=self._config.idempotent,
            token=token,
            path=self._path,
        )


class OscarInvocation:
    """One event, named and encoded for one service."""

    __slots__ = ("_body", "_name", "_rejected", "_service", "job")

    def __init__(self, service: OscarService, name: str, body: bytes, rejected: Answer | None = None) -> None:
        self._service = service
        self._name = name
        self.job = name if service.makes_jobs else ""
        """The name of the job that it makes."""
        self._body = body
        self._rejected = rejected

    def attempt(self) -> Coroutine[Any, Any, Answer]:
        """Make one attempt, if what is to be sent can be sent at all."""
        if self._rejected is None:
            return self._service.attempt(self._name, self._body)
        return _at_once(self._rejected)


async def _at_once(answer: Answer) -> Answer:
    return answer


async def announce(
    cluster: OscarCluster, services: Sequence[OscarService], removing: Collection[str] = ()
) -> None:
    """Log what "once" means on `cluster` for `services`, of which those named `removing` remove their jobs.

    Never raises for what the cluster does.
    """
    if not cluster.manages:
        _log.info(
            "what once means",
            cluster=cluster.key,
            once="one job an event if OSCAR is 4.1.0 or later and the service not federated",
            detail="a service token can't ask for the version",
        )
        return
    try:
        info = await cluster.info()
        repeated = [each.name for each in services if each.name in removing or await each.federated()]
    except NoCredentialError as error:
        _log.warning(
            "the cluster can't be asked what once means",
            cluster=cluster.key,
            cause=error.answer.cause,
            detail=str(error),
        )
        return
    once = {
        True: "one job an event",
        False: "at least once: this OSCAR is older than 4.1.0",
        None: "one job an event if this version is 4.1.0 or later",
    }[info.names_jobs]
    _log.info("what once means", cluster=cluster.key, version=info.version, once=once, at_least_once=repeated)
