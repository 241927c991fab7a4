"""The keys of `limits`, of a service and of a cluster."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from bridge.values import Model, Rate

AUTO_CEILING = 200
"""The most attempts at once that `concurrency: auto` finds: Vector's `max_concurrency_limit` as well."""

Concurrency: TypeAlias = Annotated[int, Field(ge=1, le=1000)] | Literal["auto"]
"""Attempts under way at once, or `auto`: as many as the other side is found to take."""


class LimitsConfig(Model):
    """A lane's limits. They count attempts, not events: a retry is as much work for OSCAR."""

    concurrency: Concurrency = 16
    """`auto` is for `mode: run`."""
    rate: Rate | None = None
    """Attempts begun in time, evenly spread; unlimited when not given."""
    active_jobs: int | None = Field(default=None, ge=1, le=10_000)
    """For `mode: job`: this bridge's own jobs that have not ended; unlimited when not given."""


class ClusterLimitsConfig(Model):
    """The limits that the services of a cluster share. They count `/job` alone, which OSCAR throttles."""

    concurrency: Concurrency = "auto"
    rate: Rate | None = None
    """Attempts begun in time, evenly spread; unlimited when not given."""
