"""The invocation identity: the name that makes OSCAR refuse a second job for one event."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


@lru_cache  # services are few
def invocation_names(service: str) -> Callable[[str, str], str]:
    """Return the function that names the invocations of `service` by an event's source and id.

    A name is a DNS-1123 label (RFC 1123, Kubernetes' `job-name` label) of at most 63 characters: up to 24 of
    the service's name for a person who reads `kubectl get jobs`, then 152 bits of BLAKE2b (RFC 7693)
    over the three parts, each behind its length, so that no two triples make one text.
    """
    head = (_NOT_IN_A_LABEL.sub("-", service.lower())[:24].strip("-") or "event") + "-"
    end = f"{len(service)}:{service}"

    def name(source: str, event_id: str) -> str:
        text = f"{len(source)}:{source}{len(event_id)}:{event_id}{end}"
        return head + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=19).hexdigest()

    return name


def invocation_name(source: str, event_id: str, service: str) -> str:
    """Name the invocation of `service` for event `event_id` of the source with identity `source`."""
    return invocation_names(service)(source, event_id)
