"""Trouble on request: what the ingress, the network and OSCAR itself do to a caller on a bad day."""

from __future__ import annotations

import random
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from aiohttp import web

from bridge.sandbox.oscar.errors import ingress_page
from bridge.sandbox.oscar.kubernetes import LISTING_TROUBLES, TROUBLES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Kind = TypeVar("_Kind", int, str)

EVERY_SERVICE = "*"
MANAGEMENT = "system"
"""The key of `/system/*` and of the OIDC endpoints: no service, as a name has no slash."""
USERINFO = "userinfo"
"""The key of the issuer's UserInfo endpoint, as OSCAR itself asks it at each call with an access token."""


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
        names = [one.name for one in fields(cls)]
        if not isinstance(document, Mapping) or not set(names).issuperset(document):
            raise ValueError(f"a fault is an object with {', '.join(names)}")
        fault = cls(**document)
        fault.statuses = {int(code): float(chance) for code, chance in fault.statuses.items()}
        fault.kubernetes = {kind: float(chance) for kind, chance in fault.kubernetes.items()}
        fault.scripts = {str(text): int(status) for text, status in fault.scripts.items()}
        if not fault.kubernetes.keys() <= TROUBLES.keys():
            raise ValueError(f"Kubernetes' troubles are {', '.join(TROUBLES)}")
        for name in ("evictions", "delay_seconds", "lost_answers", "cut"):
            setattr(fault, name, float(getattr(fault, name)))
        if fault.retry_after is not None:
            fault.retry_after = str(fault.retry_after)
        return fault


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

    async def answer(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request as the fault has it, and by `handler` where it spares the request."""
        if fault.delay_seconds:
            await sleep(fault.delay_seconds)
        if self.strikes("cut", fault.cut):
            return cut(request)
        if (status := self.status(fault)) is not None:
            answer = ingress_page(status, "Sandbox Fault")
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = fault.retry_after
            return answer
        response = await handler(request)
        if self.strikes("lost_answer", fault.lost_answers):
            return cut(request)
        return response

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


def cut(request: web.Request) -> web.Response:
    """Reset the connection in place of an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
