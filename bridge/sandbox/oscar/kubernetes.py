"""What stands between OSCAR and its Jobs: client-go's throttle, and what Kubernetes says on a bad day."""

from __future__ import annotations

from asyncio import get_running_loop, sleep
from collections.abc import AsyncIterator
from typing import Literal, TypeAlias

from bridge.sandbox.oscar.settings import Settings

_Group: TypeAlias = Literal["apps", "batch", "core", "rbac"]
_BURST = 10
"""Calls that client-go lets through at once (`DefaultBurst` in client-go's rest/config.go)."""
_ROUNDING = 1e-6
"""Seconds; a pause below it is what adding and taking away a loop's time leaves, and no pause."""

TROUBLES = {
    "quota": (
        'jobs.batch "{name}" is forbidden: exceeded quota: oscar-jobs, requested: count/jobs.batch=1, '
        "used: count/jobs.batch=50, limited: count/jobs.batch=50"
    ),
    "webhook": (
        'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: Post '
        '"https://kueue-webhook-service.kueue-system.svc:443/mutate-batch-v1-job?timeout=10s": context '
        "deadline exceeded"
    ),
    "denied": (
        'admission webhook "policy.example.org" denied the request: workload for {name} already exists in '
        "queue"
    ),
    "busy": "the server has received too many requests and has asked us to try again later (post jobs.batch)",
    "etcd": "etcdserver: request timed out",
    "terminating": (
        'jobs.batch "{name}" is forbidden: unable to create new content in namespace {namespace} because it '
        "is being terminated"
    ),
    "unreachable": (
        'Post "https://10.96.0.1:443/apis/batch/v1/namespaces/{namespace}/jobs": dial tcp 10.96.0.1:443: '
        "connect: connection refused"
    ),
}
"""Kind → what the API server answers instead of creating the Job; OSCAR passes it on with status 500."""
LISTING_TROUBLES = {
    "busy": "the server has received too many requests and has asked us to try again later (get {resource})",
    "etcd": "etcdserver: request timed out",
    "unreachable": (
        'Get "https://10.96.0.1:443/{path}/namespaces/{namespace}/{resource}": dial tcp 10.96.0.1:443: '
        "connect: connection refused"
    ),
}
"""Kind of `TROUBLES` → what the API server answers to a listing."""


class Throttle:
    """client-go's rate limiter, one for each API group and for all callers of OSCAR together.

    `main.go` sets no QPS, so each group's client makes its own (`RESTClientForConfigAndClient` in client-go's
    rest/config.go): 5 calls a second after a burst of 10, in the order in which they were asked for. OSCAR's
    calls carry no context of the request, so a handler goes on waiting, and makes its job, after its caller
    has hung up.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._all_made: dict[str, float] = {}
        """API group → when the calls let in so far would have been made without the burst."""

    async def calls(self, group: _Group, count: int = 1) -> None:
        """Wait until `count` more calls of `group` may be made."""
        if rate := self._settings.api_calls_per_second:
            await _until(self._let_in(group, count, rate) + (count - _BURST) / rate)

    async def together(self, group: _Group, count: int) -> AsyncIterator[int]:
        """Yield the number of each of `count` calls, asked for at once, when it may be made."""
        rate = self._settings.api_calls_per_second
        first = self._let_in(group, count, rate) if rate else 0.0
        for number in range(count):
            if rate:
                await _until(first + (number + 1 - _BURST) / rate)
            yield number

    def _let_in(self, group: _Group, count: int, rate: float) -> float:
        """Take `count` calls; return when those before them would have been made without the burst."""
        before = max(self._all_made.get(group, 0.0), get_running_loop().time())
        self._all_made[group] = before + count / rate
        return before


async def _until(moment: float) -> None:
    if (pause := moment - get_running_loop().time()) > _ROUNDING:
        await sleep(pause)
