"""Trouble on request: what the ingress, the network and OSCAR itself do to a caller on a bad day."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bridge.sandbox.oscar.kubernetes import LISTING_TROUBLES, TROUBLES

_Kind = TypeVar("_Kind", int, str)

EVERY_SERVICE = "*"
MANAGEMENT = "system"
"""The key of `/system/*` and of the OIDC endpoints: no service, as a name has no slash."""
USERINFO = "userinfo"
"""The key of the issuer's UserInfo endpoint, as OSCAR itself asks it at each call with an access token."""
_FIELDS = {"statuses", "kubernetes", "scripts", "evictions", "retry_after", "delay_seconds"}
_FIELDS |= {"lost_answers", "cut"}


@dataclass(slots=True, kw_only=True)
class Fault:
    """What happens to requests of one service; the chances are between 0 and 1."""

    statuses: dict[int, float] = field(default_factory=dict)
    """Status → chance of this answer instead of any work, such as `{500: 0.1, 503: 0.05}`."""
    kubernetes: dict[str, float] = field(default_factory=dict)
    """Kind of `TROUBLES` → chance that Kubernetes answers so instead of creating the Job: `{"quota": 1}`.
    Of `"system"`: to each call that a listing makes, for the kinds that a listing can meet."""
    scripts: dict[str, int] = field(default_factory=dict)
    """Text → exit status of the user's script for each event whose body contains it: `{"broken": 3}`."""
    evictions: float = 0.0
    """Chance that a simulated job's pod is evicted half way: Failed, whatever the supervisor."""
    retry_after: str | None = None
    """The `Retry-After` of those answers."""
    delay_seconds: float = 0.0
    """Before anything else is done."""
    lost_answers: float = 0.0
    """Chance that all is done, the job created, and the connection cut in place of an answer."""
    cut: float = 0.0
    """Chance that the connection is cut and nothing done."""

    @classmethod
    def of_json(cls, document: Any) -> Fault:
        """Read what `PUT /sandbox/faults` carries; ValueError or TypeError when it is something else."""
        if not isinstance(document, Mapping) or not _FIELDS.issuperset(document):
            raise ValueError(f"a fault is an object with {', '.join(sorted(_FIELDS))}")
        mappings = ("statuses", "kubernetes", "scripts")
        fault = cls(**{key: value for key, value in document.items() if key not in mappings})
        fault.statuses = {int(code): float(chance) for code, chance in document.get("statuses", {}).items()}
        fault.kubernetes = {kind: float(chance) for kind, chance in document.get("kubernetes", {}).items()}
        fault.scripts = {str(text): int(status) for text, status in document.get("scripts", {}).items()}
        if not fault.kubernetes.keys() <= TROUBLES.keys():
            raise ValueError(f"Kubernetes' troubles are {', '.join(TROUBLES)}")
        fault.delay_seconds = float(fault.delay_seconds)
        fault.lost_answers, fault.cut = float(fault.lost_answers), float(fault.cut)
        fault.evictions = float(fault.evictions)
        if fault.retry_after is not None:
            fault.retry_after = str(fault.retry_after)
        return fault

    def as_json(self) -> dict[str, Any]:
        """The same form that `of_json` reads."""
        return {
            "statuses": {str(code): chance for code, chance in self.statuses.items()},
            "kubernetes": self.kubernetes,
            "scripts": self.scripts,
            "evictions": self.evictions,
            "retry_after": self.retry_after,
            "delay_seconds": self.delay_seconds,
            "lost_answers": self.lost_answers,
            "cut": self.cut,
        }


class Faults:
    """The faults in force, by service: `"*"` for those without their own, `"system"` for `/system/*`, and
    `"userinfo"` for what OSCAR asks the issuer."""

    def __init__(self, seed: int) -> None:
        self.rules: dict[str, Fault] = {}
        self.injected: dict[str, int] = {}
        """Kind → how often it struck: `status`, `kubernetes`, `script`, `eviction`, `lost_answer`, `cut`."""
        self._dice = random.Random(seed)

    def set(self, fault: Fault, service: str = EVERY_SERVICE) -> None:
        """Put a fault in force for one service or for all of them."""
        self.rules[service] = fault

    def clear(self) -> None:
        """End all faults."""
        self.rules.clear()

    def of(self, service: str) -> Fault | None:
        """The fault in force for an invocation."""
        if not self.rules:
            return None
        return self.rules.get(service) or self.rules.get(EVERY_SERVICE)

    def strikes(self, kind: str, chance: float) -> bool:
        """Throw the dice, and count a hit."""
        if chance <= 0.0 or self._dice.random() >= chance:
            return False
        self.injected[kind] = self.injected.get(kind, 0) + 1
        return True

    def status(self, fault: Fault) -> int | None:
        """One of the fault's statuses, or None when this request is spared."""
        return self._one_of("status", fault.statuses)

    def trouble(self, service: str) -> str | None:
        """The kind of trouble that Kubernetes makes for a Job of `service`, or None when it creates it."""
        fault = self.of(service)
        return None if fault is None else self._one_of("kubernetes", fault.kubernetes)

    def trouble_of_listing(self) -> str | None:
        """The kind of trouble that Kubernetes makes for one call of a listing, or None."""
        fault = self.rules.get(MANAGEMENT)
        if fault is None:
            return None
        met = {kind: chance for kind, chance in fault.kubernetes.items() if kind in LISTING_TROUBLES}
        return self._one_of("kubernetes", met)

    def evicts(self, service: str) -> bool:
        """Whether the pod of a job of `service` is evicted."""
        fault = self.of(service)
        return fault is not None and self.strikes("eviction", fault.evictions)

    def script_status(self, service: str, body: bytes) -> int:
        """What the user's script ends with for this event: 0 unless a rule says otherwise."""
        fault = self.of(service)
        for text, status in fault.scripts.items() if fault is not None else ():
            if text.encode() in body:
                self.injected["script"] = self.injected.get("script", 0) + 1
                return status
        return 0

    def _one_of(self, what: str, chances: Mapping[_Kind, float]) -> _Kind | None:
        if not chances:
            return None
        throw = self._dice.random()
        for kind, chance in chances.items():
            if throw < chance:
                self.injected[what] = self.injected.get(what, 0) + 1
                return kind
            throw -= chance
        return None
