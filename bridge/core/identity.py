"""The invocation identity: the name that makes OSCAR refuse a second job for one event."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


def invocation_name(source: str, event_id: str, service: str) -> str:
    """Name the invocation of `service` for event `event_id` of the source with identity `source`.

    A DNS-1123 label (RFC 1123, Kubernetes' `job-name` label) of at most 63 characters: up to 24 of
    the service's name for a person who reads `kubectl get jobs`, then 152 bits of BLAKE2b (RFC 7693)
    over the three parts, each behind its length, so that no two triples make one text.
    """
    text = f"{len(source)}:{source}{len(event_id)}:{event_id}{len(service)}:{service}"
    return f"{_head(service)}-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=19).hexdigest()}"


@lru_cache  # services are few
def _head(service: str) -> str:
    return _NOT_IN_A_LABEL.sub("-", service.lower())[:24].strip("-") or "event"
