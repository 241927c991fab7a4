"""The pipeline's part of `services`."""

from __future__ import annotations

from pydantic import Field

from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.retry import RetryConfig
from bridge.values import Model, Seconds


class LaneConfig(Model):
    """The pipeline's part of a service."""

    queue: int = Field(default=1000, ge=1, le=1_000_000)
    """Events waiting in the lane, those between two attempts included."""
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    park: bool = True
    """Write events that can't be attempted to the store; if not, they are held upstream."""
    park_after: Seconds = 60.0
    """How long an event waits for a shut gate before it is parked."""
