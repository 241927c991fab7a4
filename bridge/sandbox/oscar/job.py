"""One Job of Kubernetes with its pod, and how OSCAR tells of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

_POD_STEM, _FIRST_SUFFIX = 58, "22222"
"""What is left of `job-` in its pod's name, and the least of five characters behind it
(`k8s.io/apiserver/pkg/storage/names`)."""


@dataclass(slots=True, eq=False)
class Job:
    """One Job with its pod. Times are seconds since the epoch; a time that has not come is infinite."""

    name: str
    service: str
    namespace: str
    owner_label: str | None
    """`oscar.grycap/job-owner`; None without that label."""
    sequence: int
    created: float = field(default_factory=lambda: time.time())
    pod_from: float = field(init=False)
    """When the pod is there: at once, or later while Kueue or a slow Job controller holds it."""
    pod_until: float = math.inf
    """When the pod is collected, though the Job stays."""
    placed: float = math.inf
    """When a node took the pod."""
    started: float = math.inf
    finished: float = math.inf
    gone: float = math.inf
    """When the object is away, once it is being deleted."""
    failed: bool = False
    start_error: bool = False
    """The container could not be started."""
    hangs: bool = False
    """A volume of the pod can't be mounted: it holds its place, and never starts."""
    evicted: bool = False
    """A simulated pod is evicted half way."""
    script_status: int = 0
    """What the faults say the user's script ends with."""
    output_keys: tuple[str, ...] = ()
    """Where a simulated job that ends well puts its output: `bucket/key`."""
    log: bytes = b""
    """Both streams of the pod, complete once the job has finished; the first mebibyte."""
    event_seen: bytes | None = None
    """Exactly what the supervisor read from its standard input, with the newline of `echo`."""
    input_seen: bytes | None = None
    """Exactly the bytes of the file that the user's script was given."""

    def __post_init__(self) -> None:
        self.pod_from = self.created

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed, or Suspended as long as the Job has no pod yet."""
        return self.phase_at(time.time())

    def phase_at(self, moment: float) -> str:
        """The phase at some past moment."""
        if moment < self.pod_from:
            return "Suspended"
        if moment < self.started:
            return "Pending"
        if moment < self.finished:
            return "Running"
        return "Failed" if self.failed else "Succeeded"

    def has_pod(self, moment: float) -> bool:
        """Whether the pod is there: not before it is made, nor once it is collected."""
        return self.pod_from <= moment < self.pod_until

    def as_json(self, moment: float | None = None, start: str = "") -> dict[str, str]:
        """`getPod` of `pkg/handlers/logs.go`, now or at some past moment, of a page that begins at `start`.

        Without a pod it says Suspended, also of a job that ended long ago. `creation_time` is the pod's
        start time, so a pod that no node has taken yet has no times at all; a container that could not be
        started did so in 1970 (kubernetes/kubernetes#120331). The pods are listed with the page's token, so
        one whose name is before `start` is not found. Kubernetes draws its end; here it is the least.
        """
        now = time.time() if moment is None else moment
        if not self.has_pod(now) or f"{self.name}-"[:_POD_STEM] + _FIRST_SUFFIX < start:
            return {"status": "Suspended"}
        shown = {"status": self.phase_at(now)}
        if now >= self.placed:
            shown["creation_time"] = _rfc3339(self.placed)
        if now >= self.started:
            shown["start_time"] = _rfc3339(0 if self.start_error else self.started)
        if now >= self.finished:
            shown["finish_time"] = _rfc3339(self.finished)
        return shown


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
