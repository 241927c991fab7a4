"""The objects in the cluster's MinIO, as far as OSCAR itself tells of them."""

from __future__ import annotations

import base64
import time
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bridge.sandbox.oscar.services import CLUSTER_ADMIN, Service
from bridge.sandbox.oscar.settings import Settings


class NoSuchBucketError(Exception):
    """There is no bucket of that name."""


def minio_outputs(service: Service) -> Iterator[dict[str, Any]]:
    """The service's outputs that go to the cluster's own MinIO."""
    for output in service.definition.get("output") or ():
        if str(output.get("storage_provider")).partition(".")[::2] in (("minio", ""), ("minio", "default")):
            yield output


def wanted(name: str, output: dict[str, Any]) -> bool:
    """Whether an output takes a file of that name (`upload_output` of faas-supervisor, as the Go one)."""
    prefixes, suffixes = tuple(output.get("prefix") or ()), tuple(output.get("suffix") or ())
    return (not prefixes or name.startswith(prefixes)) and (not suffixes or name.endswith(suffixes))


@dataclass(slots=True)
class _Bucket:
    service: Service
    """The one it was made for."""
    keys: list[str] = field(default_factory=list)
    """Sorted."""
    objects: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Key → bytes, and when it was written last."""


class Buckets:
    """Made with the services that name them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buckets: dict[str, _Bucket] = {}

    def make(self, service: Service) -> None:
        """`createBuckets` of `pkg/handlers/create.go`: the buckets, and an empty object for each folder."""
        for place in (*(service.definition.get("input") or ()), *minio_outputs(service)):
            if str(place.get("storage_provider")).partition(".")[0] != "minio":
                continue
            bucket, _, folder = place["path"].partition("/")
            self._buckets.setdefault(bucket, _Bucket(service))
            if folder:
                self.put(f"{bucket}/{folder}/", 0)

    def put(self, path: str, size: int, written: float | None = None) -> None:
        """Write the object `bucket/key`; an unknown bucket takes nothing, as MinIO then answers 404."""
        name, _, key = path.partition("/")
        bucket = self._buckets.get(name)
        if bucket is None:
            return
        if key not in bucket.objects:
            insort(bucket.keys, key)
        bucket.objects[key] = (size, time.time() if written is None else written)

    def page(self, name: str, token: str) -> dict[str, Any]:
        """`MakeGetHandler` of `pkg/handlers/buckets/get_bucket.go`; NoSuchBucketError.

        In the order of keys from the bucket's first, with no way to ask for a prefix; folders are objects.
        """
        bucket = self._buckets.get(name)
        if bucket is None:
            raise NoSuchBucketError
        service, size = bucket.service, self._settings.jobs_a_page
        start = bisect_right(bucket.keys, _decoded(token)) if token else 0
        keys = bucket.keys[start : start + size]
        truncated = start + size < len(bucket.keys)
        by_admin = service.owner == CLUSTER_ADMIN
        visibility = "" if by_admin else service.definition.get("visibility") or "private"
        shown: dict[str, Any] = {
            "bucket_name": name,
            # An administrator's bucket has no policy, so its visibility is not found.
            "visibility": visibility,
            "allowed_users": service.definition.get("allowed_users") if visibility == "restricted" else None,
            "owner": service.owner,
            "metadata": {
                "from_service": service.name,
                "owner": "" if by_admin else service.owner,
                "owner_name": "oscar" if by_admin else service.owner,
            },
            "objects": [
                {
                    "object_name": key,
                    "size_bytes": bucket.objects[key][0],
                    "last_modified": _go_time(bucket.objects[key][1]),
                }
                for key in keys
            ],
            "storage_quota": {"source": "unset"},
            # MinIO's scanner has not been there yet.
            "storage_usage": {"used": "0", "used_bytes": 0},
            "attribution": "partial",
            "is_truncated": truncated,
            "returned_items": len(keys),
        }
        if not keys:
            del shown["objects"]
        if truncated:
            shown["next_page"] = base64.b64encode(keys[-1].encode()).decode()
        return shown

    def keys(self, name: str) -> list[str]:
        """All keys of a bucket, in order; none of one that is not there."""
        bucket = self._buckets.get(name)
        return [] if bucket is None else list(bucket.keys)

    def visible(self, name: str) -> bool:
        """Whether a user, any user, may list the bucket: its visibility is found."""
        bucket = self._buckets.get(name)
        return bucket is not None and bucket.service.owner != CLUSTER_ADMIN


def _decoded(token: str) -> str:
    return base64.b64decode(token).decode()


def _go_time(seconds: float) -> str:
    """`time.Time.String()` of what MinIO gives to the millisecond: no ISO 8601, and no trailing zeros."""
    written = datetime.fromtimestamp(seconds, UTC)
    fraction = f".{written.microsecond // 1000:03}".rstrip("0").rstrip(".")
    return f"{written:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"
