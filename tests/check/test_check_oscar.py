"""Mistakes seeded at a cluster and its services, on the sandbox's OSCAR and on what is none."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from yarl import URL

from bridge.core.ports import Finding
from bridge.destinations.oscar import check as check_module
from bridge.destinations.oscar.check import check as check_cluster
from bridge.destinations.oscar.config import ClusterConfig, ServiceConfig
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.sandbox.servers import free_port
from bridge.testing import Proxy
from tests.check.findings import is_well, said
from tests.check.stubs import oscar_that_answers

PASSWORD = "sandbox"
SERVICES = {"plants": {}}


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        cluster.add_service("plants")
        yield cluster


async def check(
    endpoint: str,
    services: dict[str, dict[str, Any]] = SERVICES,
    auth: Any = None,
    followed: Sequence[str] = (),
    removing: Sequence[str] = (),
    **more: Any,
) -> Sequence[Finding]:
    auth = auth or {"type": "basic", "username": "oscar", "password": PASSWORD}
    config = ClusterConfig.model_validate({"endpoint": endpoint, "auth": auth, **more})
    return await check_cluster(
        "main",
        config,
        {key: ServiceConfig.model_validate({"cluster": "main", **one}) for key, one in services.items()},
        followed,
        removing,
    )


async def test_a_cluster_as_it_should_be_is_well_and_nothing_is_invoked(oscar: SandboxOscar) -> None:
    found = await check(oscar.url)
    assert is_well(found)
    said(found, "ok", "OSCAR 4.1.0", "accepted", about="cluster main")
    said(found, "ok", "one job an event", about="service plants")
    assert oscar.ledger.requests == 0


async def test_a_wrong_password_is_a_problem_that_does_not_tell_it(oscar: SandboxOscar) -> None:
    auth = {"type": "basic", "username": "oscar", "password": "pa55-of-oscar"}
    found = await check(oscar.url, auth=auth)
    said(found, "problem", "refused user oscar", remedy="auth.username` and its password")
    assert "pa55-of-oscar" not in str(found)


async def test_refresh_tokens_are_tried(oscar: SandboxOscar) -> None:
    auth = {
        "type": "oidc",
        "refresh_token": oscar.oidc.grant("ana"),
        "token_endpoint": f"{oscar.url}/oidc/token",
        "client_id": "bridge",
    }
    oscar.add_service("seeds", owner="ana")
    found = await check(oscar.url, {"seeds": {}}, auth)
    assert is_well(found)
    said(found, "ok", "an access token was given")
    oscar.oidc.revoke(auth["refresh_token"])
    found = await check(oscar.url, {"seeds": {}}, auth)
    said(found, "problem", "no credential", "invalid_grant", remedy="refresh token has expired, was revoked")
    assert auth["refresh_token"] not in str(found)
    stranger = {**auth, "refresh_token": oscar.oidc.grant("eve", ("elsewhere",))}
    found = await check(oscar.url, {"seeds": {}}, stranger)
    said(found, "problem", "refused the access token", remedy="OIDC_GROUPS")
    found = await check(oscar.url, {}, {**auth, "token_endpoint": f"http://127.0.0.1:{free_port()}/"})
    said(found, "problem", "no credential", remedy="token_endpoint")


async def test_service_tokens_are_looked_at_as_far_as_they_can_be(oscar: SandboxOscar) -> None:
    found = await check(oscar.url, auth={"type": "service-token", "token": "a" * 64})
    said(found, "note", "neither the version nor the services", remedy="OIDC")
    said(found, "problem", "not that of service plants", about="service plants", remedy="token_file")
    assert "a" * 64 not in str(found)
    auth = {"type": "service-token", "token": oscar.services.named("plants")[0].token}
    found = await check(oscar.url, auth=auth)
    said(found, "ok", "the service token opens it", about="service plants")
    assert is_well(found)
    said(await check(oscar.url, {"zebra": {}}, auth), "problem", "service zebra", remedy="create the service")
    oscar.settings.version = "4.0.2"
    said(await check(oscar.url, auth=auth), "note", "can't be asked for (status 404)", about="service plants")
    assert oscar.ledger.requests == 0
    found = await check(oscar.url, auth={"type": "service-token", "token": "a" * 63})
    said(found, "problem", "63 characters", remedy="token_file")


async def test_services_that_are_not_there_are_told_with_what_was_meant(oscar: SandboxOscar) -> None:
    found = await check(oscar.url, {"plant": {}, "x": {"service": "zebra"}, "plants": {"owner": "ana"}})
    said(
        found, "problem", "no service plant ", "did you mean `plants`", about="service plant", remedy="create"
    )
    said(found, "problem", "no service zebra", "it has plants", about="service x")
    said(found, "problem", "none of owner ana", remedy="services.plants.owner")


async def test_two_owners_of_one_name_are_told(oscar: SandboxOscar) -> None:
    oscar.add_service("plants", owner="ana", visibility="public")
    found = await check(oscar.url)
    said(found, "problem", "2 services are called plants", "ana", remedy="service-token")
    oscar.add_service("plants", owner="bea", visibility="public")
    auth = {
        "type": "oidc",
        "refresh_token": oscar.oidc.grant("ana"),
        "token_endpoint": f"{oscar.url}/oidc/token",
        "client_id": "bridge",
    }
    found = await check(oscar.url, auth=auth)
    said(found, "problem", "2 services are called plants", remedy="services.plants.owner")
    assert is_well(await check(oscar.url, {"plants": {"owner": "ana"}}, auth))


async def test_what_once_means_is_told_of_each_service(oscar: SandboxOscar) -> None:
    members = {"group_id": "g", "members": [{"type": "oscar", "cluster_id": "other"}]}
    oscar.add_service("shared", federation=members)
    oscar.add_service("far", interlink_node_name="hpc-1")
    services = {
        "plants": {"mode": "run"},
        "shared": {},
        "far": {},
        "near": {"service": "plants", "interlink": True},
    }
    found = await check(oscar.url, services)
    said(found, "note", "at least once", about="service plants")
    said(found, "warning", "federated with 1 other", about="service shared", remedy="federation's members")
    said(found, "warning", "offloaded to hpc-1", "98298", about="service far", remedy="interlink: true")
    said(found, "note", "no interLink node", about="service near")
    found = await check(oscar.url, {"far": {"mode": "run"}})
    said(found, "problem", "offloaded to hpc-1", "/run", about="service far", remedy="mode: job")
    oscar.settings.version = "4.0.2"
    found = await check(oscar.url)
    said(found, "warning", "OSCAR 4.0.2 is older than 4.1.0", remedy="upgrade OSCAR")
    said(found, "note", "at least once", about="service plants")
    oscar.settings.version = "devel"
    said(await check(oscar.url), "note", "version 'devel'")


async def test_without_a_serverless_backend_there_is_no_run() -> None:
    pages = {"/health": "Ok", "/system/info": {"version": "4.1.0"}, "/system/services": [{"name": "plants"}]}
    async with oscar_that_answers(pages) as url:
        found = await check(url, {"plants": {"mode": "run"}})
    said(found, "problem", "no serverless backend", about="service plants", remedy="mode: job")


async def test_the_way_to_the_cluster_is_told_apart(oscar: SandboxOscar) -> None:
    found = await check(f"http://127.0.0.1:{free_port()}")
    said(found, "problem", "connection refused", remedy="clusters.main.endpoint")
    found = await check("https://oscar.invalid")
    said(found, "problem", "oscar.invalid can't be resolved", remedy="DNS")
    found = await check(oscar.url.replace("http:", "https:"))
    said(found, "problem", "no TLS connection", remedy="TLS on this port")
    async with oscar_that_answers({}) as url:
        said(await check(url), "problem", "/health answered 404", remedy="OSCAR's?")
    async with oscar_that_answers({"/health": "bad gateway"}, status=502) as url:
        said(await check(url), "problem", "/health answered 502", remedy="in front of OSCAR")
    pages = {"/health": "Ok", "/system/info": "<html>", "/system/services": "<html>"}
    async with oscar_that_answers(pages) as url:
        said(await check(url), "problem", "without a JSON list", remedy="OSCAR's?")
    oscar.faults.set(Fault(statuses={503: 1.0}), "system")
    said(await check(oscar.url), "problem", "answered 503", remedy="in front of it")


async def test_certificates_are_told_apart(oscar: SandboxOscar, tmp_path: Path) -> None:
    authority, now = trustme.CA(), datetime.now(UTC)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusting = {"tls": {"ca_file": str(tmp_path / "ca.pem")}}
    port = URL(oscar.url).port or 0
    past, soon = now - timedelta(days=1), now + timedelta(days=3)
    for name, ends, more, severity, words, remedy in (
        ("127.0.0.1", None, {}, "problem", "authority unknown here", "clusters.main.tls.ca_file"),
        ("127.0.0.2", None, trusting, "problem", "is for another name", "name that the certificate is for"),
        ("127.0.0.1", past, trusting, "problem", "not valid now", "renewed"),
        ("127.0.0.1", soon, trusting, "warning", "expires in", "renewed"),
        ("127.0.0.1", None, {"tls": {"verify": False}}, "warning", "not verified", "ca_file"),
    ):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        began = now - timedelta(days=30)
        authority.issue_cert(name, not_before=began, not_after=ends).configure_cert(context)
        async with Proxy(port, tls=context) as proxy:
            found = await check(f"https://127.0.0.1:{proxy.port}", **more)
        said(found, severity, words, remedy=remedy)
        if severity == "warning":
            said(found, "ok", "OSCAR 4.1.0")


async def test_an_answer_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_LONGEST_PAGE", 100_000)
    pages = {"/health": "Ok", "/system/info": {"version": "4.1.0"}, "/system/services": "x" * 200_000}
    async with oscar_that_answers(pages) as url:
        said(await check(url), "problem", "GET /system/services: the answer has more than 100000 bytes")


@pytest.mark.parametrize(("seconds", "word"), [(3600, "behind"), (-90, "ahead of")])
async def test_a_clock_that_is_wrong_is_a_warning(seconds: float, word: str) -> None:
    date = formatdate(time.time() + seconds, usegmt=True)
    pages = {"/health": "Ok", "/system/info": {"version": "4.1.0"}, "/system/services": [{"name": "plants"}]}
    async with oscar_that_answers(pages, Date=date) as url:
        said(await check(url), "warning", f"s {word} the cluster's", remedy="NTP")


async def test_what_once_means_where_jobs_are_removed_is_told(oscar: SandboxOscar) -> None:
    found = await check(oscar.url, followed=["plants"], removing=["plants"])
    assert is_well(found)
    said(found, "note", "at least once with several replicas", "remove_finished", about="service plants")


async def test_outputs_that_oscar_does_not_list_are_told_where_they_decide(oscar: SandboxOscar) -> None:
    services: dict[str, dict[str, Any]] = {
        "plants": {"success": "output"},
        "far": {"success": "output"},
        "both": {"success": "output"},
        "near": {"success": "output"},
        "far-phase": {"service": "far", "owner": "cluster_admin"},
    }
    far, near = (
        {"storage_provider": "webdav.dcache", "path": "/data"},
        {"storage_provider": "minio", "path": "out"},
    )
    for name, outputs in {"far": [far], "both": [near, far], "near": [near]}.items():
        oscar.add_service(name, output=outputs)
    found = await check(oscar.url, services, followed=["plants", "far", "both", "near"])
    said(found, "problem", "it has none", about="service plants", remedy="minio.default")
    said(found, "problem", "they are in webdav.dcache", about="service far")
    said(found, "note", "looks at both/out/ alone", "webdav.dcache", about="service both")
    for about in ("service near", "service far-phase"):
        assert [one.message for one in found if one.about == about] == ["one job an event"]


async def test_where_jobs_are_followed_the_listing_is_looked_at(oscar: SandboxOscar) -> None:
    assert is_well(await check(oscar.url, followed=["plants"]))
    oscar.preload(oscar.services.named("plants")[0], 2000)
    assert is_well(await check(oscar.url))
    found = await check(oscar.url, followed=["plants"])
    said(found, "warning", "2000 jobs are kept", "up to 10 min", remedy="TTL_JOB", about="cluster main")
    oscar.settings.version = "3.6.0"
    found = await check(oscar.url, followed=["plants"])
    said(found, "problem", "can't be followed", remedy="4.1.0", about="service plants")
