"""A whole bridge between a bed and a simulating OSCAR."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bridge.sandbox.oscar import SandboxOscar
from tests.conformance.beds import Bed, number
from tests.promises.world import World, until


class BedWorld(World):
    """A bridge that reads a bed, and a simulating OSCAR with the service `plants`."""

    def __init__(self, directory: Path, oscar: SandboxOscar, bed: Bed) -> None:
        super().__init__(directory, None, oscar, bed.name)  # type: ignore[arg-type] # no Kafka of the world's own
        self.bed = bed

    def source(self, **more: Any) -> dict[str, Any]:
        return {**self.bed.settings(), **more}

    async def one_job_each(self, count: int, *, seconds: float = 60.0) -> None:
        """Return once each of `count` events has a job, and none has two."""
        bodies = self.oscar.ledger.bodies
        try:
            await until(lambda: len(bodies("plants")) >= count, seconds=seconds)
        except AssertionError:
            tail = "\n".join(daemon.log.read_text()[-3000:] for daemon in self.daemons)
            raise AssertionError(f"{len(bodies('plants'))} of {count} jobs\n{tail}") from None
        made = Counter(map(number, bodies("plants")))
        assert made == dict.fromkeys(range(count), 1)
        assert set(self.oscar.ledger.created.values()) == {1}
