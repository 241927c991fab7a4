"""Service definitions, their tokens and owners, as OSCAR keeps them in config maps."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLUSTER_ADMIN = "cluster_admin"
"""The owner of what was created with basic auth (`DefaultOwner` in `pkg/types/service.go`)."""
SHARED_NAMESPACE = "oscar-svc"
SERVICE_TOKEN_LENGTH = 64
_USER_AT = re.compile(r"[0-9a-z]+@")
_MAX_NAMESPACE = 18


def format_uid(uid: str) -> str:
    """What stands before the `@` of an EGI identifier (`FormatUID` in `pkg/utils/auth/multitenancy.go`)."""
    found = _USER_AT.search(uid)
    return uid if found is None else uid[: found.end() - 1]


def namespace_of(owner: str) -> str:
    """`BuildUserNamespace` of `pkg/utils/namespaces.go`: two owners alike in 8 characters share one."""
    if owner in ("", CLUSTER_ADMIN):
        return SHARED_NAMESPACE
    room = _MAX_NAMESPACE - len(SHARED_NAMESPACE) - 1
    name = re.sub("[^a-z0-9-]+", "-", owner.lower()).strip("-")
    digest = hashlib.sha1(owner.encode(), usedforsecurity=False).hexdigest()
    if len(name) < room - 1:
        name = f"{name}-{digest}" if name else digest
    return f"{SHARED_NAMESPACE}-{name[:room].strip('-')}"


def new_token() -> str:
    """Hexadecimal characters (`pkg/utils/token.go`)."""
    return secrets.token_hex(SERVICE_TOKEN_LENGTH // 2)


@dataclass(slots=True)
class Service:
    """One service of one owner."""

    name: str
    owner: str
    namespace: str
    token: str
    definition: dict[str, Any] = field(default_factory=dict)

    @property
    def script(self) -> str:
        return str(self.definition.get("script", ""))

    @property
    def mounts(self) -> bool:
        """Whether a sidecar mounts a bucket for its pods (`Mount` in `pkg/types/service.go`)."""
        return bool((self.definition.get("mount") or {}).get("storage_provider"))

    @property
    def interlink(self) -> bool:
        """Offloaded to HPC (`IsInterLinkService` in `pkg/types/interlink.go`)."""
        return bool(self.definition.get("interlink_node_name"))

    def environment(self, kind: str) -> dict[str, str]:
        """`environment.variables` or `environment.secrets` of the definition."""
        return dict((self.definition.get("environment") or {}).get(kind) or {})

    def open_to(self, uid: str | None) -> bool:
        """`authorizeRequest` of `pkg/handlers/logs.go`; None is the cluster's administrator."""
        visibility = self.definition.get("visibility", "private")
        if uid is None or visibility == "public" or uid == self.owner:
            return True
        return visibility == "restricted" and uid in (self.definition.get("allowed_users") or ())

    def as_json(self) -> dict[str, Any]:
        """What the API shows; secrets are emptied as in `pkg/handlers/create.go`."""
        shown = {
            "cluster_id": "",
            "memory": "256Mi",
            "cpu": "0.2",
            "log_level": "INFO",
            "input": None,
            "output": None,
            "labels": {"oscar_service": self.name},
            "annotations": {},
            "visibility": "private",
            "allowed_users": None,
            "interlink_node_name": "",
            "storage_providers": {
                "minio": {"default": {"endpoint": "http://minio.minio:9000", "access_key": "hidden"}}
            },
            **self.definition,
            "name": self.name,
            "owner": self.owner,
            "namespace": self.namespace,
            "token": self.token,
        }
        shown["environment"] = {
            "variables": self.environment("variables"),
            "secrets": dict.fromkeys(self.environment("secrets"), ""),
        }
        return shown


class InvalidDefinitionError(Exception):
    """What gin's validator says about a service definition."""


def check_definition(document: Any) -> dict[str, Any]:
    """The `binding` tags of `Service` in `pkg/types/service.go`; InvalidDefinitionError."""
    if not isinstance(document, Mapping):
        raise InvalidDefinitionError("json: cannot unmarshal into Go value of type types.Service")
    for key in ("name", "image", "script"):
        if not document.get(key):
            raise InvalidDefinitionError(
                f"Key: 'Service.{key.title()}' Error:Field validation for '{key.title()}' "
                "failed on the 'required' tag"
            )
    if len(document["name"]) > 39:
        raise InvalidDefinitionError(
            "Key: 'Service.Name' Error:Field validation for 'Name' failed on the 'max' tag"
        )
    return dict(document) | {
        side: [_place(document["name"], place) for place in document[side]]
        for side in ("input", "output")
        if document.get(side)
    }


def _place(service: str, place: Mapping[str, Any]) -> dict[str, Any]:
    """A path without a bucket is in the service's own (`pkg/handlers/create.go`)."""
    path = str(place.get("path", "")).strip(" /")
    if "/" not in path and str(place.get("storage_provider")).partition(".")[0] in ("minio", "s3"):
        path = f"{service}/{path}"
    return {**place, "path": path}


class Services:
    """All services of the cluster. A name can have several owners, from the days before 4.1.0."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Service]] = {}

    def named(self, name: str) -> list[Service]:
        """`ListServicesByName`: an unknown name is an empty list, not an error."""
        return self._by_name.get(name, [])

    def all(self) -> list[Service]:
        """In the order of Kubernetes: namespace, then name."""
        services = [service for owners in self._by_name.values() for service in owners]
        return sorted(services, key=lambda service: (service.namespace, service.name))

    def add(self, definition: dict[str, Any], owner: str) -> Service:
        """Create a service with a new token."""
        service = Service(definition["name"], owner, namespace_of(owner), new_token(), definition)
        self._by_name.setdefault(service.name, []).append(service)
        return service

    def remove(self, service: Service) -> None:
        """Forget a service."""
        self._by_name[service.name].remove(service)
        if not self._by_name[service.name]:
            del self._by_name[service.name]
