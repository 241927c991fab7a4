"""What `check` finds out about a cluster and its services, without invoking any."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

import aiohttp
from aiohttp import hdrs

from bridge.core.errors import CredentialError
from bridge.core.ports import Finding, Findings, Verdict
from bridge.credentials import BasicAuth, NoCredentialError, OidcAuth, basic
from bridge.destinations.oscar.auth import given_token
from bridge.destinations.oscar.cluster import OscarCluster, names_jobs
from bridge.destinations.oscar.config import (
    ClusterConfig,
    ServiceConfig,
    ServiceTokenAuth,
)
from bridge.destinations.oscar.definitions import Definitions, Version
from bridge.destinations.oscar.jobs import SECONDS_A_JOB
from bridge.net.bodies import body_of
from bridge.net.documents import json_object
from bridge.net.reach import note_proxy, reach_url
from bridge.net.unanswered import why_unanswered
from bridge.telemetry.logging import excerpt

_ASK_SECONDS = 5.0
_ALL_SECONDS = 10.0
_SKEW_SECONDS = 30.0
_SHORT_TOKEN_SECONDS = 120.0
_MANY_JOBS = 1000
"""More than that take some five minutes to be listed."""
_LONGEST_PAGE = 64 << 20
"""Bytes of an answer that are read: the listing of services carries all their scripts."""


async def check(
    key: str,
    config: ClusterConfig,
    services: Mapping[str, ServiceConfig],
    followed: Collection[str] = (),
    removing: Collection[str] = (),
) -> Sequence[Finding]:
    """Look at `clusters.{key}` and at `services`, those of the configuration that are on it.

    Of those `followed` the jobs are followed, of those `removing` they are deleted after that, by key.
    """
    findings = Findings(f"cluster {key}")
    look = _Look(findings, key, config, services, followed, removing)
    try:
        async with OscarCluster(key, config) as cluster:
            _warn_of_openness(findings, key, cluster, config)
            if isinstance(config.auth, OidcAuth):
                note_proxy(findings, config.auth.token_endpoint)
            if not await reach_url(
                findings,
                cluster.endpoint,
                config.tls.context() if cluster.endpoint.scheme == "https" else None,
                address_key=f"clusters.{key}.endpoint",
                ca_key=f"clusters.{key}.tls.ca_file",
            ):
                return findings.found
            async with asyncio.timeout(_ALL_SECONDS):
                await look.all(cluster)
    except TimeoutError:
        findings.problem(
            f"OSCAR did not answer all questions within {_ALL_SECONDS:g} s",
            "look after the cluster: it is overloaded, or something in front of it holds answers back",
        )
    return [*findings.found, *(finding for own in look.services.values() for finding in own.found)]


def _warn_of_openness(findings: Findings, key: str, cluster: OscarCluster, config: ClusterConfig) -> None:
    host = cluster.endpoint.host or ""
    if cluster.endpoint.scheme == "http" and not _is_near(host):
        findings.warning(
            "credentials go to this endpoint in clear text", f"`clusters.{key}.endpoint` with https://"
        )
    elif cluster.endpoint.scheme == "https" and not config.tls.verify:
        findings.warning(
            "the endpoint's certificate is not verified: anybody in between can take the credentials",
            f"`clusters.{key}.tls.ca_file` in place of `verify: false`",
        )


def _is_near(host: str) -> bool:
    """Tell whether the traffic stays on this machine or inside a Kubernetes cluster."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return (
            host == "localhost" or "." not in host or host.endswith((".svc", ".cluster.local", ".localhost"))
        )


class _Page(NamedTuple):
    status: int
    text: str
    date: str | None


class _Failed(Exception):  # noqa: N818 - a finding, not an error
    """No answer; carries why."""


class _Look:
    """One look at a cluster that can be reached."""

    def __init__(
        self,
        findings: Findings,
        key: str,
        config: ClusterConfig,
        services: Mapping[str, ServiceConfig],
        followed: Collection[str],
        removing: Collection[str],
    ) -> None:
        self.services = {name: Findings(f"service {name}") for name in services}
        self._findings = findings
        self._key = key
        self._config = config
        self._configs = services
        self._followed = followed
        self._removing = removing

    async def all(self, cluster: OscarCluster) -> None:
        if not await self._health(cluster):
            return
        authorization = await self._authorization(cluster)
        if authorization is None:
            return
        if not cluster.manages:
            await self._unmanaged(cluster, f"Bearer {authorization}")
            return
        try:
            # One after the other: of calls that race to be a user's first, OSCAR lets all but one fail
            # (pkg/utils/auth/oidc.go makes the user's secret for each).
            info = await self._get(cluster, "info", authorization)
            version = self._version(info)
            if version is None:
                return
            listing = await self._get(cluster, "services", authorization)
        except _Failed as failed:
            self._findings.problem(str(failed), "look after the cluster: it is up, but did not answer this")
            return
        if (there := self._listed(listing)) is not None:
            definitions = Definitions(self._key, self._config.auth, version, there)
            for key, config in self._configs.items():
                definitions.look(self.services[key], key, config, removes=key in self._removing)
        if self._followed:
            await self._jobs(cluster, version, authorization)

    # --- the cluster ---

    async def _jobs(self, cluster: OscarCluster, version: Version, authorization: str) -> None:
        """Tell whether jobs can be followed, and how long it takes to look at all that are listed."""
        for key in self._followed:
            findings = self.services[key]
            if version.names_jobs is False:
                findings.problem(
                    f"its jobs can't be followed: OSCAR {version.told} names them itself, so none is known "
                    "as the bridge's own",
                    f"upgrade OSCAR to 4.1.0 or later, or leave `limits.active_jobs` and `track` of "
                    f"`services.{key}` out",
                )
            elif not cluster.lists_all_jobs:
                findings.warning(
                    "its jobs can be followed only as far as OSCAR lists them to this user: those of S3 "
                    "records carry another's label, and would count as active for a day",
                    f"use the cluster's user in `clusters.{self._key}.auth`",
                )
        if not cluster.lists_all_jobs:
            return
        try:
            page = await self._get(cluster, "status", authorization)
        except _Failed:
            return  # it is a comfort; what is wrong shows in what else was asked
        told = json_object(page.text).get("oscar")
        count = told.get("jobs_count") if isinstance(told, dict) else None
        if page.status == 200 and isinstance(count, int) and count > _MANY_JOBS:
            minutes = count * SECONDS_A_JOB / 60
            self._findings.warning(
                f"{count} jobs are kept, most of which have ended: with OSCAR's default throttle it takes "
                f"up to {minutes:.0f} min to look which, and places stay empty meanwhile",
                "lower TTL_JOB of OSCAR, so that jobs that have ended go sooner, or set `remove_finished: "
                "true` on services of which one replica runs",
            )

    async def _health(self, cluster: OscarCluster) -> bool:
        findings, endpoint_key = self._findings, f"`clusters.{self._key}.endpoint`"
        asked = time.time()
        try:
            page = await self._get(cluster, "/health")
        except _Failed as failed:
            findings.problem(
                str(failed), f"is {endpoint_key} OSCAR's, with the right port and http or https?"
            )
            return False
        if page.status >= 500:
            findings.problem(
                f"GET /health answered {page.status}: {excerpt(page.text)}",
                "look after the cluster: what stands in front of OSCAR does not get through to it, or it is "
                "ill",
            )
            return False
        if page.status != 200:
            findings.problem(
                f"GET /health answered {page.status}, which is not OSCAR's answer",
                f"is {endpoint_key} OSCAR's? A path in front of /job, /run and /system belongs into it",
            )
            return False
        self._skew(page.date, (asked + time.time()) / 2)
        return True

    def _skew(self, date: str | None, now: float) -> None:
        """Compare clocks by the `Date` header (RFC 9110, 6.6.1), which has whole seconds."""
        try:
            skew = now - parsedate_to_datetime(date or "").timestamp() - 0.5
        except ValueError:
            return
        if abs(skew) > _SKEW_SECONDS:
            self._findings.warning(
                f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the "
                "cluster's: access tokens are refreshed at the wrong time, and events' ages are wrong",
                "have both clocks set by NTP",
            )

    async def _authorization(self, cluster: OscarCluster) -> str | None:
        auth, prefix = self._config.auth, f"clusters.{self._key}.auth"
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                if isinstance(auth, BasicAuth):
                    return await basic(auth)
                if isinstance(auth, ServiceTokenAuth):
                    return (await given_token(auth)).token
                bearer = cluster.bearer("", None)
                authorization = await bearer.get()
        except TimeoutError:
            self._findings.problem(
                f"no access token within {_ASK_SECONDS:g} s",
                f"look at `{prefix}`: does the token endpoint (or the agent) answer from here?",
            )
            return None
        except NoCredentialError as error:
            self._no_credential(error)
            return None
        except CredentialError as error:
            self._findings.problem(str(error), f"look at `{prefix}`")
            return None
        left = bearer.seconds_left()
        if left < _SHORT_TOKEN_SECONDS:
            self._findings.warning(
                f"access tokens live {left:.0f} s only: they are refreshed all the time",
                "have the issuer give tokens of some minutes at least",
            )
        else:
            self._findings.ok(
                "an access token was given"
                + (
                    ""
                    if math.isinf(left)
                    else f"; it lives another {left / 60:.0f} min, and is refreshed before"
                )
            )
        return authorization

    def _no_credential(self, error: NoCredentialError) -> None:
        auth, prefix = self._config.auth, f"clusters.{self._key}.auth"
        if isinstance(auth, ServiceTokenAuth):
            remedy = f"put the `token` of the service's definition into `{prefix}.token_file`"
        elif isinstance(auth, BasicAuth):
            remedy = f"correct `{prefix}.password_file`, or its permissions"
        elif not isinstance(auth, OidcAuth):
            remedy = f"is the oidc-agent running, and the account loaded (oidc-add)? See `{prefix}`"
        elif error.answer.verdict is Verdict.REFUSED:
            remedy = (
                f"the refresh token has expired, was revoked, or is another client's: get a new one for "
                f"`{prefix}.refresh_token_file`, and see whether `client_id` is the one it was given to"
            )
        else:
            remedy = f"is `{prefix}.token_endpoint` right, and can it be reached from here?"
        self._findings.problem(f"no credential: {error}", remedy)

    async def _unmanaged(self, cluster: OscarCluster, authorization: str) -> None:
        """Ask what a service token can be asked for: whether it opens its service."""
        self._findings.note(
            "a service token opens /job and /run only, so neither the version nor the services can be asked "
            "for. One job an event, if OSCAR is 4.1.0 or later and the service has no federation",
            f"use the cluster's user or OIDC in `clusters.{self._key}.auth` to have them checked",
        )
        for key, config in self._configs.items():
            name, findings = config.service or key, self.services[key]
            try:
                page = await self._get(cluster, f"services/{name}/auth", authorization)
            except _Failed as failed:
                findings.problem(str(failed), "look after the cluster: it is up, but did not answer this")
                continue
            if page.status == 200:
                findings.ok("the service token opens it")
            elif page.status == 401:
                findings.problem(
                    f"the token is not that of service {name}, or no more",
                    f"put the `token` of its definition into `clusters.{self._key}.auth.token_file`",
                )
            elif page.status == 500 and not page.text:  # service_token.go takes the first of no services
                findings.problem(
                    f"OSCAR fails when it is asked for service {name}, as it does for one that is not there",
                    f"correct `services.{key}.service`, or create the service",
                )
            else:  # before 4.1.0 there was nothing to ask
                findings.note(f"whether the token opens it can't be asked for (status {page.status})")

    def _version(self, page: _Page) -> Version | None:
        if not self._accepted(page, "/system/info"):
            return None
        told = json_object(page.text)
        version = str(told.get("version") or "")
        names = names_jobs(version)
        runs = bool(told.get("serverless_backend"))
        if names is False:
            self._findings.warning(
                f"OSCAR {version} is older than 4.1.0 and names jobs itself: a repeated invocation makes a "
                "second job, so every service has its events at least once, not once",
                "upgrade OSCAR to 4.1.0 or later",
            )
        elif names is None:
            self._findings.note(f"OSCAR tells version {version!r}, which is not understood")
        else:
            self._findings.ok(f"OSCAR {version} at {self._config.endpoint}; the credentials are accepted")
        return Version(version, names, runs)

    def _accepted(self, page: _Page, path: str) -> bool:
        if page.status == 200:
            return True
        auth, prefix = self._config.auth, f"clusters.{self._key}.auth"
        if page.status not in (400, 401, 403):
            self._findings.problem(
                f"GET {path} answered {page.status}: {excerpt(page.text)}",
                "look after the cluster, or whatever stands in front of it",
            )
        elif isinstance(auth, BasicAuth):
            self._findings.problem(
                f"the cluster refused user {auth.username} (status {page.status})",
                f"correct `{prefix}.username` and its password: those of the cluster's own user",
            )
        else:
            self._findings.problem(
                f"the cluster refused the access token (status {page.status}): {excerpt(page.text)}",
                "is the token's issuer one of the cluster's, and its user in one of the cluster's groups "
                "(OIDC_ISSUERS, OIDC_GROUPS of OSCAR)? Is `scopes` enough to tell the groups?",
            )
        return False

    def _listed(self, page: _Page) -> list[dict[str, Any]] | None:
        if not self._accepted(page, "/system/services"):
            return None
        try:
            listed = json.loads(page.text)
        except (ValueError, RecursionError):
            listed = ""
        if not isinstance(listed, list | None):
            self._findings.problem(
                "GET /system/services answered 200 without a JSON list",
                f"is `clusters.{self._key}.endpoint` OSCAR's?",
            )
            return None
        return [service for service in listed or () if isinstance(service, dict)]

    # --- asking ---

    async def _get(self, cluster: OscarCluster, path: str, authorization: str | None = None) -> _Page:
        url = cluster.endpoint / "health" if path == "/health" else cluster.endpoint / "system" / path
        headers = {} if authorization is None else {hdrs.AUTHORIZATION: authorization}
        try:
            async with cluster.session.get(
                url,
                headers=headers,
                allow_redirects=False,
                proxy=cluster.proxy,
                timeout=aiohttp.ClientTimeout(total=_ASK_SECONDS),
            ) as response:
                text = (await body_of(response, _LONGEST_PAGE)).decode("utf-8", "replace")
                return _Page(response.status, text, response.headers.get(hdrs.DATE))
        except TimeoutError:
            raise _Failed(f"GET {url.path}: no answer within {_ASK_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed(excerpt(f"GET {url.path}: {why_unanswered(error)}")) from None
