"""All that `check` reaches, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from bridge.checkup.local import check_local
from bridge.checkup.routes import check_routes
from bridge.core.errors import reason
from bridge.core.ports import Finding, Findings, Patience, Severity
from bridge.destinations.oscar.check import check as check_cluster
from bridge.net.certificates import OwnCertificate
from bridge.pipeline.entrance import OPEN_PATIENCE
from bridge.settings import Settings
from bridge.sources.registry import installed, kind_of
from bridge.telemetry.logging import excerpt

_MOST_SECONDS = 19.0


async def check(settings: Settings) -> Sequence[Finding]:
    """Reach every cluster and broker of `settings` without consuming or invoking, all at once.

    Gives findings in the order of the configuration: this machine, clusters with their services, sources,
    plugs that can't be used, routes. Takes less than 20 s, whatever hangs.
    """
    parts: list[tuple[str, Coroutine[Any, Any, Sequence[Finding]]]] = [("store", check_local(settings))]
    if (certificate := settings.http.own_certificate()) is not None:
        parts.append(("http", _look_at("http", certificate)))
    for key, cluster in settings.clusters.items():
        services = {name: one for name, one in settings.services.items() if one.cluster == key}
        followed = [name for name, one in services.items() if one.follows]
        removing = [name for name, one in services.items() if one.remove_finished]
        parts.append((f"cluster {key}", check_cluster(key, cluster, services, followed, removing)))
    for key, source in settings.sources.items():
        if (certificate := source.own_certificate()) is not None:
            parts.append((f"source {key}", _look_at(f"source {key}", certificate)))
        parts.append((f"source {key}", _check_source(settings, key)))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_bounded(about, part), name=f"check {about}") for about, part in parts]
    return [
        *(finding for task in running for finding in task.result()),
        *_check_plugs(),
        *check_routes(settings),
    ]


async def _check_source(settings: Settings, key: str) -> Sequence[Finding]:
    config = settings.sources[key]
    return await kind_of(config).check(config, key, _patience(settings, key))


def _check_plugs() -> Sequence[Finding]:
    findings = Findings("sources")
    for why in installed().unusable.values():
        findings.warning(why, "no source here is of that type, so it does no harm: mend or uninstall it")
    return findings.found


async def _look_at(about: str, certificate: OwnCertificate) -> Sequence[Finding]:
    _, severity, message = await asyncio.to_thread(certificate.look)
    remedy = "" if severity is Severity.OK else "have it renewed; the bridge reads it again by itself"
    return [Finding(severity, about, message, remedy)]


async def _bounded(about: str, part: Coroutine[Any, Any, Sequence[Finding]]) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            return await part
    except TimeoutError:
        findings = Findings(about)
        findings.problem(f"not done within {_MOST_SECONDS:g} s", "something on the way to it hangs")
        return findings.found
    except Exception as error:  # noqa: BLE001 - what is wrong with one must not hide the others' findings
        findings = Findings(about)
        findings.problem(
            f"can't be checked: {excerpt(reason(error))}", "is the configuration right for it? else a defect"
        )
        return findings.found


def _patience(settings: Settings, source: str) -> Patience:
    services = [settings.services[name] for name in settings.reachable(source)]
    attempt = max((service.timeout_seconds for service in services), default=0.0)
    waits = [
        OPEN_PATIENCE * service.park_after if service.park else service.retry.give_up_after
        for service in services
    ]
    return Patience(
        attempt=attempt,
        unsettled=attempt + max(waits, default=0.0),
        parks=all(service.park for service in services),
        alone=any(service.remove_finished for service in services),
    )
