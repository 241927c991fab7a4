"""What a test or the command line can choose about the sandbox cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

_DIGITS = re.compile(r"\d+")


def _secrets() -> dict[str, str]:
    return {"OSCAR_SECRET": "sandbox-secret"}


@dataclass(slots=True, kw_only=True)
class Settings:
    """The cluster's configuration. Every field but those of the listener may change while it runs."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    username: str = "oscar"
    password: str = "sandbox"  # noqa: S105 - the sandbox's own, told to whoever asks
    version: str = "4.1.0"
    """What `/system/info` tells, and what decides: see `at_least`."""

    simulate: bool = False
    """Jobs do not run: they end `simulated_seconds` after they started, and succeed unless the faults say
    otherwise. For load: 50,000 of them are no trouble. Fixed at the start."""
    simulated_seconds: float = 0.0
    controller_seconds: float = 0.0
    """How long the Job controller takes to make a Job's pod; until then it is listed as Suspended."""
    pending_seconds: float = 0.0
    """The least time from a Job's creation to its place: scheduling."""
    starting_seconds: float = 0.0
    """How long a simulated pod has its place before it runs: pulling the image."""
    max_pods: int | None = None
    """The places of the cluster's nodes: pods at once. Later ones are Pending, and run in the order of
    creation. None: 2, or no bound when simulating. Fixed at the start."""
    supervisor: Literal["python", "go"] = "python"
    """What runs the script: faas-supervisor, under which every job ends well whatever its script did, or
    oscar-supervisor, which passes the script's exit status on and keeps its output to itself."""
    dead_pods: int = 12_500
    """Ended pods that Kubernetes keeps, of all namespaces (`--terminated-pod-gc-threshold`); beyond it the
    oldest are collected, and their Jobs listed as Suspended."""
    api_calls_per_second: float | None = None
    """How many calls of each API group OSCAR may make at Kubernetes: 5 in truth, since OSCAR leaves
    client-go's default, which is about 2.5 jobs a second. None: as many as come."""
    jobs_quota: int | None = None
    """A ResourceQuota on the Job objects of each namespace (`count/jobs.batch`)."""
    deleting_seconds: float = 0.0
    """How long a Job that is deleted stays there, with its name (`object is being deleted`)."""
    kueue: bool = False
    """Jobs of users' services are Suspended, without a pod, until the user's quota has room for them
    (`KUEUE_ENABLE`); then they wait for a place. Simulated ones alone: what really runs is not held."""
    ttl_job_seconds: float = 2_592_000
    """After this a finished Job object is gone, and its name free (`TTL_JOB` in `pkg/types/config.go`)."""
    run_timeout_seconds: float = 300.0
    """The ingress' patience with `/run`, then 504."""
    write_timeout_seconds: float = 300.0
    """What takes OSCAR longer ends without an answer, though it is done (`WRITE_TIMEOUT` in
    `pkg/types/config.go`): Go closes the connection in place of writing to it."""
    max_body_bytes: int | None = None
    """An ingress' body limit (413). None: OSCAR alone, which reads whatever comes (`pkg/handlers/job.go`)."""

    jobs_a_page: int = 70
    """`JOB_LISTING_LIMIT` in `pkg/types/config.go`, for jobs and for objects in buckets."""
    page_token_seconds: float = 300.0
    """Kubernetes compacts its history every five minutes; an older continue token is refused."""

    pod_secrets: dict[str, str] = field(default_factory=_secrets)
    """In the environment of every pod, beside the service's own `environment.secrets`."""
    provisioned: set[str] = field(default_factory=lambda: {"minio"})
    """The users with a MinIO secret in `oscar-svc`, as `FormatUID` writes them."""
    first_contact_seconds: float = 0.0
    """From the look whether a user has a secret to the making of one: of calls that race all fail but one."""

    access_token_seconds: float = 3600.0
    rotate_refresh_tokens: bool = False
    """Each refresh gives a new refresh token and ends the old one."""

    keep_bodies: bool = True
    """The ledger keeps each job's body; switch it off for long loads."""
    ledger_file: Path | None = None
    """Append a line of JSON per created job, before the answer. Never read back: a new cluster is empty."""
    seed: int = 0
    """Of the faults' dice."""

    def compressed(self, factor: float) -> Settings:
        """The same cluster `factor` times as fast: all durations divided, the rate of calls multiplied."""
        durations = (key.name for key in fields(self) if key.name.endswith("_seconds"))
        faster: dict[str, Any] = {name: getattr(self, name) / factor for name in durations}
        calls = self.api_calls_per_second
        return replace(self, **faster, api_calls_per_second=None if calls is None else calls * factor)

    def at_least(self, version: str) -> bool:
        """Whether the cluster is of `version` or later; a build without numbers (`devel`) is the latest."""
        numbers = [int(number) for number in _DIGITS.findall(self.version)]
        return not numbers or numbers >= [int(number) for number in _DIGITS.findall(version)]
