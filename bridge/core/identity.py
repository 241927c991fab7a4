"""The invocation identity: the name that makes OSCAR refuse a second job for one event."""

from __future__ import annotations

import re
from base64 import b32encode
from hashlib import sha256

_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


def invocation_name(source: str, event_id: str, service: str) -> str:
    """Name the invocation of `service` for event `event_id` of the source with identity `source`.

    A DNS-1123 label (RFC 1123, Kubernetes' `job-name` label) of at most 63 characters: up to 24 of
    the service's name for a person who reads `kubectl get jobs`, then 160 bits of SHA-256 over the
    three parts, each behind its length, so that no two triples make one text.
    """
    digest = sha256()
    for part in (source, event_id, service):
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(raw))
        digest.update(raw)
    tail = b32encode(digest.digest()[:20]).decode("ascii").lower()
    head = _NOT_IN_A_LABEL.sub("-", service.lower())[:24].strip("-")
    return f"{head or 'event'}-{tail}"
