"""A whole bridge between a bed of our own and a sandbox OSCAR; its events are known by their ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge import testing
from bridge.core.identity import invocation_name
from bridge.sandbox.oscar import SandboxOscar
from bridge.testing import Bed, until
from tests.support.daemon import Daemon


class World(testing.World):
    """One bed, one OSCAR, and as many daemons as a test wants, which are forked where they can be."""

    daemon_type = Daemon

    def __init__(self, directory: Path, oscar: SandboxOscar, bed: Bed) -> None:
        super().__init__(directory, oscar, bed)
        self.ids: dict[int, str] = {}
        """Number of an event → its id, for all that `produce_numbers` put."""

    async def produce_numbers(self, count: int, **more: Any) -> None:
        """Put `count` events `{"n": …}` into the bed, numbered on."""
        first = len(self.ids)
        numbers = range(first, first + count)
        ids = await self.bed.produce([json.dumps({"n": n, **more}).encode() for n in numbers])
        self.ids.update(zip(numbers, ids, strict=True))

    def job_of(self, number: int, service: str = "plants", identity: str = "uploads") -> str:
        """The name of the job of an event, from its id alone."""
        return invocation_name(identity, self.ids[number], service)

    def assert_one_job_an_event(self, service: str = "plants", numbers: Sequence[int] | None = None) -> None:
        expected = list(self.ids) if numbers is None else list(numbers)
        made = self.numbers(service)
        missing = [n for n in expected if not made[n]]
        twice = {n: count for n, count in made.items() if count > 1}
        assert not missing, f"{len(missing)} lost, such as {missing[:5]}"
        assert not twice, f"{len(twice)} doubled, such as {dict(list(twice.items())[:5])}"
        assert set(made) == set(expected)
        for number in expected:
            assert self.oscar.ledger.created[self.job_of(number, service)] == 1

    async def all_jobs(self, *, seconds: float = 60.0, service: str = "plants") -> None:
        """Return once every event has a job."""
        ledger = self.oscar.ledger
        names = [self.job_of(n, service) for n in self.ids]
        try:
            await until(lambda: all(name in ledger.created for name in names), seconds=seconds)
        except AssertionError:
            missing = sum(name not in ledger.created for name in names)
            tail = "\n".join(daemon.tail() for daemon in self.daemons)
            raise AssertionError(f"{missing} of {len(names)} events have no job\n{tail}") from None
