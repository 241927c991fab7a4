"""A whole bridge between a bed and a simulating OSCAR."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from bridge.sandbox.oscar import SandboxOscar
from bridge.testing.beds import Bed
from bridge.testing.daemon import Daemon
from bridge.testing.waiting import until


def plants_of(oscar: SandboxOscar) -> dict[str, Any]:
    """Configure that cluster, and its service `plants`."""
    return {
        "clusters": {
            "main": {
                "endpoint": oscar.url,
                "auth": {
                    "type": "basic",
                    "username": oscar.settings.username,
                    "password": oscar.settings.password,
                },
            }
        },
        "services": {"plants": {"cluster": "main", "retry": {"max_backoff": "1s"}}},
    }


class World:
    """A bed, an OSCAR with the service `plants`, and as many daemons as a test wants, which it closes."""

    daemon_type: ClassVar[type[Daemon]] = Daemon

    def __init__(self, directory: Path, oscar: SandboxOscar, bed: Bed) -> None:
        self.directory = directory
        self.oscar = oscar
        self.bed = bed
        self.daemons: list[Daemon] = []

    def configuration(self, **more: Any) -> dict[str, Any]:
        """Return one that leads the source `uploads` into `plants`; `more` replaces top-level keys."""
        return {
            **plants_of(self.oscar),
            "sources": {"uploads": self.source()},
            "routes": [{"from": "uploads", "to": "plants"}],
            **more,
        }

    def source(self, **more: Any) -> dict[str, Any]:
        """Return the source's part of it, with `more` keys."""
        return {**self.bed.settings(), **more}

    def daemon(self, configuration: dict[str, Any] | None = None, prelude: str = "") -> Daemon:
        """Make a daemon, not started."""
        directory = self.directory / f"daemon-{len(self.daemons)}"
        daemon = self.daemon_type(directory, configuration or self.configuration(), prelude)
        self.daemons.append(daemon)
        return daemon

    async def jobs(self, count: int, service: str = "plants", *, seconds: float = 60.0) -> None:
        """Return once `service` has `count` jobs; fails with the end of the daemons' logs."""
        bodies = self.oscar.ledger.bodies
        try:
            await until(lambda: len(bodies(service)) >= count, seconds)
        except AssertionError:
            tail = "\n".join(daemon.tail() for daemon in self.daemons)
            raise AssertionError(f"{len(bodies(service))} of {count} jobs\n{tail}") from None

    def numbers(self, service: str = "plants") -> Counter[int]:
        """Count the jobs of `service` by the number of their event."""
        return Counter(map(self.bed.number, self.oscar.ledger.bodies(service)))

    async def one_job_each(self, count: int, *, seconds: float = 60.0) -> None:
        """Return once each of `count` events has a job, and none has two."""
        await self.jobs(count, seconds=seconds)
        assert self.numbers() == dict.fromkeys(range(count), 1)
        assert set(self.oscar.ledger.created.values()) == {1}

    def close(self) -> None:
        """Kill the daemons that are left."""
        for daemon in self.daemons:
            daemon.close()
