"""What `concurrency: auto` makes of other sides of many kinds, in virtual time: any machine gives the same.

`python -m bench.limits SEEDS` prints for each scenario, each seed and each of those compared (`auto`, 16 at
once, a model of Vector's algorithm) the events accepted a second and in the ten seconds after an outage, the
attempts that made no job and the calls a job.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine

import pytest
from structlog.testing import capture_logs

from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.config import AUTO_CEILING
from tests.pipeline import clock, vector
from tests.pipeline.driving import drive
from tests.pipeline.scenarios import SCENARIOS, Ran

Figures = dict[str, list[dict[str, dict[str, float]]]]
"""By scenario and seed, of each of those compared."""


def figures(seeds: int) -> Figures:
    """Run it all."""
    found: Figures = {}
    with pytest.MonkeyPatch.context() as monkeypatch, capture_logs():
        clock.patch(monkeypatch)
        for name, scenario in SCENARIOS.items():
            found[name] = [
                {
                    "auto": _told(_driven(drive(scenario, seed, Auto(AUTO_CEILING)))),
                    "fixed": _told(_driven(drive(scenario, seed, Fixed(16)))),
                    "model": _told(vector.run(scenario, seed)),
                }
                for seed in range(seeds)
            ]
    return found


def _driven(driving: Coroutine[None, None, Ran]) -> Ran:
    with asyncio.Runner(loop_factory=clock.VirtualLoop) as runner:
        return runner.run(driving)


def _told(ran: Ran) -> dict[str, float]:
    return {
        "goodput": ran.goodput,
        "wasted": ran.wasted,
        "back": ran.accepted_between(70, 80),
        "calls": ran.calls_a_job,
    }


if __name__ == "__main__":
    print(json.dumps(figures(int(sys.argv[1]))))
