"""What `check` says of a service, from its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from bridge.core.ports import Findings
from bridge.credentials import BasicAuth
from bridge.destinations.oscar.config import Auth, ServiceConfig
from bridge.destinations.oscar.outputs import places_of
from bridge.destinations.oscar.payload import MAX_EVENT_BYTES, MAX_INTERLINK_BYTES

_MOST_NAMES = 8


class Version(NamedTuple):
    """What a cluster is."""

    told: str
    """Its version, as it tells it."""
    names_jobs: bool | None
    """Whether it names jobs as it is told; None for a version not understood."""
    runs: bool
    """Whether it has `/run`."""


class Definitions:
    """The services of one cluster, as its API lists them."""

    def __init__(self, cluster: str, auth: Auth, version: Version, there: Sequence[dict[str, Any]]) -> None:
        self._cluster = cluster
        self._auth = auth
        self._version = version
        self._there = there

    def look(self, findings: Findings, key: str, config: ServiceConfig, *, removes: bool) -> None:
        """Add to `findings` what is to be said of `services.{key}`.

        `removes` says whether its jobs are removed once they have succeeded.
        """
        name = config.service or key
        found = [service for service in self._there if service.get("name") == name]
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
            names = sorted({str(service.get("name")) for service in self._there})
            close = get_close_matches(name, names, n=1)
            findings.problem(
                f"there is no service {name} on cluster {self._cluster}"
                + (f"; did you mean `{close[0]}`?" if close else f"; it has {_some(names) or 'none'}"),
                f"correct `services.{key}.service`, create the service, or let the bridge's user see it",
            )
            return
        if len(found) > 1:
            self._ambiguous(findings, key, name, found)
            return
        self._definition(findings, key, config, found[0])
        self._once(findings, key, config, found[0])
        if config.success == "output":
            _outputs(findings, found[0])
        if removes:
            findings.note(
                "at least once with several replicas: which jobs were removed after they succeeded "
                "(`remove_finished`) is known to this one alone"
            )

    def _ambiguous(self, findings: Findings, key: str, name: str, found: Sequence[dict[str, Any]]) -> None:
        owners = _some([str(service.get("owner")) for service in found])
        if isinstance(self._auth, BasicAuth):
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
        if isinstance(self._auth, BasicAuth) and not definition.get("token"):
            findings.problem("its definition holds no token", "update the service, which gives it one")

    def _once(self, findings: Findings, key: str, config: ServiceConfig, definition: dict[str, Any]) -> None:
        version = self._version
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


def _outputs(findings: Findings, definition: Mapping[str, Any]) -> None:
    places, others = places_of(definition)
    if not places:
        findings.problem(
            "`success: output`, but OSCAR lists no output of it, so no job would be known to have succeeded: "
            + (f"they are in {_some(others)}" if others else "it has none"),
            "give it an output on the cluster's MinIO (`minio.default`), or use `success: phase`",
        )
    elif others:
        findings.note(
            f"`success: output` looks at {_some([str(place) for place in places])} alone: OSCAR can't list "
            f"{_some(others)}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
