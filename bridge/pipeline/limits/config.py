"""The keys of `limits`."""

from __future__ import annotations

from pydantic import Field

from bridge.values import Model, Rate


class LimitsConfig(Model):
    """A lane's limits. They count attempts, not events: a retry is as much work for OSCAR."""

    concurrency: int = Field(default=16, ge=1, le=1000)
    """Attempts under way at once."""
    rate: Rate | None = None
    """Attempts begun in time, evenly spread; unlimited when not given."""
