"""What `check` finds out about a cluster and its services, without invoking any."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

import aiohttp
from aiohttp import hdrs

from bridge.core.errors import CredentialError
from bridge.core.ports import Finding, Findings, Verdict
from bridge.credentials import BasicAuth, NoCredentialError, OidcAuth, basic
from bridge.destinations.oscar.auth import given_token
from bridge.destinations.oscar.client import OscarCluster, names_jobs
from bridge.destinations.oscar.config import (
    ClusterConfig,
    ServiceConfig,
    ServiceTokenAuth,
)
from bridge.destinations.oscar.payload import MAX_EVENT_BYTES, MAX_INTERLINK_BYTES
from bridge.net.bodies import body_of
from bridge.net.reach import reach_url
from bridge.telemetry.logging import excerpt

_ASK_SECONDS = 5.0
_ALL_SECONDS = 10.0
_SKEW_SECONDS = 30.0
_SHORT_TOKEN_SECONDS = 120.0
_MOST_NAMES = 8
_LONGEST_PAGE = 64 << 20
"""Bytes of an answer that are read: the listing of services carries all their scripts."""


async def check(key: str, config: ClusterConfig, services: Mapping[str, ServiceConfig]) -> Sequence[Finding]:
    """Look at `clusters.{key}` and at `services`, those of the configuration that are on it."""
    findings = Findings(f"cluster {key}")
    look = _Look(findings, key, config, services)
    try:
        async with OscarCluster(key, config, connections=1) as cluster:
            _warn_of_openness(findings, key, cluster, config)
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
        self, findings: Findings, key: str, config: ClusterConfig, services: Mapping[str, ServiceConfig]
    ) -> None:
        self.services = {name: Findings(f"service {name}") for name in services}
        self._findings = findings
        self._key = key
        self._config = config
        self._configs = services

    async def all(self, cluster: OscarCluster) -> None:
        if not await self._health(cluster):
            return
        authorization = await self._authorization(cluster)
        if authorization is None:
            return
        if not cluster.manages:
            self._unmanaged()
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
            for name, config in self._configs.items():
                self._service(self.services[name], name, config, there, version)

    # --- the cluster ---

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

    def _unmanaged(self) -> None:
        self._findings.note(
            "a service token opens /job and /run only, so neither the version nor the services can be asked "
            "for. One job an event, if OSCAR is 4.1.0 or later and the service has no federation",
            f"use the cluster's user or OIDC in `clusters.{self._key}.auth` to have them checked",
        )

    def _version(self, page: _Page) -> _Version | None:
        if not self._accepted(page, "/system/info"):
            return None
        told = _object(page.text)
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
        return _Version(version, names, runs)

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

    # --- its services ---

    def _service(
        self,
        findings: Findings,
        key: str,
        config: ServiceConfig,
        there: Sequence[dict[str, Any]],
        version: _Version,
    ) -> None:
        name = config.service or key
        found = [service for service in there if service.get("name") == name]
        if config.owner is not None:
            owners = [str(service.get("owner")) for service in found]
            found = [service for service in found if service.get("owner") == config.owner]
            if owners and not found:
                findings.problem(
                    f"OSCAR has a service {name} of {_some(owners)}, but none of owner {config.owner}",
                    f"correct `services.{key}.owner`, or leave it out",
                )
                return
        if not found:
            names = sorted({str(service.get("name")) for service in there})
            close = get_close_matches(name, names, n=1)
            findings.problem(
                f"there is no service {name} on cluster {self._key}"
                + (f"; did you mean `{close[0]}`?" if close else f"; it has {_some(names) or 'none'}"),
                f"correct `services.{key}.service`, create the service, or let the bridge's user see it",
            )
            return
        if len(found) > 1:
            self._ambiguous(findings, key, name, found)
            return
        self._definition(findings, key, config, found[0])
        self._once(findings, key, config, found[0], version)

    def _ambiguous(self, findings: Findings, key: str, name: str, found: Sequence[dict[str, Any]]) -> None:
        owners = _some([str(service.get("owner")) for service in found])
        if isinstance(self._config.auth, BasicAuth):
            # resolveServiceNamespace of pkg/backends/knative.go: 500 "found in multiple namespaces"
            findings.problem(
                f"{len(found)} services are called {name}, of {owners}; OSCAR does not give the cluster's "
                "user the definition of either, and so no token",
                "call one of them otherwise, or use `auth: {type: service-token}` with the right one's token",
            )
        else:
            findings.problem(
                f"{len(found)} services are called {name}, of {owners}",
                f"say which in `services.{key}.owner`",
            )

    def _definition(
        self, findings: Findings, key: str, config: ServiceConfig, definition: dict[str, Any]
    ) -> None:
        offloaded = bool(definition.get("interlink_node_name"))
        if offloaded and config.mode == "run":
            # pkg/backends/knative.go makes no Knative service of it.
            findings.problem(
                f"`mode: run`, but it is offloaded to {definition['interlink_node_name']} by interLink, and "
                "/run does not reach it there",
                f"`services.{key}.mode: job`",
            )
        elif offloaded and config.event_bytes > MAX_INTERLINK_BYTES:
            findings.warning(
                f"it is offloaded to {definition['interlink_node_name']} by interLink, which takes events of "
                f"at most {MAX_INTERLINK_BYTES} bytes, and the bridge would send {config.event_bytes}",
                f"`services.{key}.interlink: true`",
            )
        elif config.interlink and not offloaded:
            findings.note(
                f"`interlink: true`, but its definition names no interLink node: events up to "
                f"{MAX_EVENT_BYTES} bytes would do",
                f"leave `services.{key}.interlink` out",
            )
        if isinstance(self._config.auth, BasicAuth) and not definition.get("token"):
            findings.problem("its definition holds no token", "update the service, which gives it one")

    def _once(
        self,
        findings: Findings,
        key: str,
        config: ServiceConfig,
        definition: dict[str, Any],
        version: _Version,
    ) -> None:
        federation = definition.get("federation")
        members = federation.get("members") if isinstance(federation, dict) else None
        if config.mode == "run":
            if not version.runs:
                findings.problem(
                    "`mode: run`, but this OSCAR has no serverless backend, so there is no /run",
                    f"`services.{key}.mode: job`, or OSCAR with Knative (SERVERLESS_BACKEND)",
                )
                return
            text = "is safe to run twice (`idempotent: true`)" if config.idempotent else "has no identity"
            findings.note(f"at least once: a call of /run {text}")
        elif members:
            findings.warning(
                f"at least once: it is federated with {len(members)} other clusters, and a repeated event "
                "can have a job on two of them",
                "take the federation's members out of the service, or make the service safe to run twice",
            )
        elif version.names_jobs is False:
            findings.note(f"at least once: OSCAR {version.told} names jobs itself")
        elif version.names_jobs is None:
            findings.note("one job an event, if this OSCAR is 4.1.0 or later")
        else:
            findings.ok("one job an event")

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
            raise _Failed(excerpt(f"GET {url.path}: {str(error) or type(error).__name__}")) from None


class _Version(NamedTuple):
    told: str
    names_jobs: bool | None
    runs: bool


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
