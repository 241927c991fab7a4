"""The invocation identity: the name that makes OSCAR refuse a second job for one event."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256

_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32 = [first + second for first in _DIGITS for second in _DIGITS]
"""Ten bits as two digits of base 32 (RFC 4648, 6): on every event's way, at half the cost of b32encode."""
_SHIFTS = range(150, -1, -10)
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


def invocation_name(source: str, event_id: str, service: str) -> str:
    """Name the invocation of `service` for event `event_id` of the source with identity `source`.

    A DNS-1123 label (RFC 1123, Kubernetes' `job-name` label) of at most 63 characters: up to 24 of
    the service's name for a person who reads `kubectl get jobs`, then 160 bits of SHA-256 over the
    three parts, each behind its length, so that no two triples make one text.
    """
    parts = [part.encode("utf-8", "surrogatepass") for part in (source, event_id, service)]
    digest = sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest()
    number = int.from_bytes(digest[:20], "big")
    return f"{_head(service)}-{''.join([_BASE32[number >> shift & 1023] for shift in _SHIFTS])}"


@lru_cache  # services are few
def _head(service: str) -> str:
    return _NOT_IN_A_LABEL.sub("-", service.lower())[:24].strip("-") or "event"
