"""The pipeline's part of `services`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.retry import RetryConfig
from bridge.values import Model, Seconds


class LaneConfig(Model):
    """The pipeline's part of a service."""

    queue: int = Field(default=1000, ge=1, le=1_000_000)
    """Events waiting in the lane, those between two attempts included."""
    limits: LimitsConfig = LimitsConfig()
    track: bool = False
    """For `mode: job`: follow each job until it has ended. So it is with `limits.active_jobs` as well."""
    on_failure: Literal["ignore", "dead-letter"] = "ignore"
    """What becomes of the event of a job that was followed and failed."""
    remove_finished: bool = False
    """Delete a job that was followed and succeeded, so that listings stay short."""
    retry: RetryConfig = RetryConfig()
    park: bool = True
    """Write events that can't be attempted to the store; if not, they are held upstream."""
    park_after: Seconds = 60.0
    """How long an event waits for a shut gate before it is parked."""

    @property
    def follows(self) -> bool:
        """Whether jobs are followed until they have ended."""
        return self.track or self.limits.active_jobs is not None
