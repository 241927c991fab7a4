"""What the promises need of an upstream: events put into it, a look at what is left, and trouble made."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from bridge.core.ports import Source
from bridge.sources import Keeping, SourceKind
from bridge.telemetry.metrics import Metrics
from bridge.testing.proxy import Proxy


def no_spool() -> NoReturn:
    """Stand in for a spool where a source needs none."""
    raise AssertionError("its upstream keeps its events")


def keeping(lost: dict[str, int] | None = None) -> Keeping:
    """Keep nothing; what a source says that is lost is added up in `lost`, by place."""
    counts = {} if lost is None else lost

    def add(place: str, events: int) -> None:
        counts[place] = counts.get(place, 0) + events

    return Keeping(spool=no_spool, state_dir=Path("/nonexistent"), lost=add)


class Bed(ABC):
    """One upstream for one test, with nothing in it at first.

    A subclass says how to put events and how to see what is left. Events are numbered, so that a test can
    tell which of them came, and which came twice.
    """

    kind: ClassVar[SourceKind[Any]]
    """What is under test."""
    keeping: Keeping = keeping()
    """What this machine keeps for the source: nothing, unless a subclass sets another one."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the source's configuration as a person would write it, `type` included."""

    @abstractmethod
    async def put(self, count: int, first: int = 0) -> None:
        """Put `count` events, numbered from `first`; once it returns they are there."""

    @abstractmethod
    async def left(self) -> int:
        """Count what the upstream still has, not answered for good. Asked while no source has any of it."""

    def number(self, data: bytes) -> int:
        """Return the number of the event with this data: of JSON, its member `n`."""
        return int(json.loads(data)["n"])

    async def poison(self) -> None:
        """Put one item that the source can't read as usual, for `UnreadablePromises`."""
        raise NotImplementedError

    async def restart(self) -> None:
        """End the server in the midst of its work, and start it with what it keeps; for `RestartPromises`."""
        raise NotImplementedError

    async def cut(self) -> None:  # noqa: B027 - not every upstream is reached by a connection
        """Break the connections to the upstream; new ones go well. Do nothing where there are none."""

    async def refuse(self, refusing: bool) -> None:  # noqa: B027 - likewise
        """Make the upstream unreachable, or reachable again. Do nothing where it can't be."""

    def source(self, **more: Any) -> Source:
        """Make the source as `sources.uploads`, with `more` keys; its metrics are in `metrics`."""
        config = self.kind.config.model_validate({**self.settings(), **more})
        self.metrics = Metrics()
        return self.kind.build(config, "uploads", self.metrics.source("uploads"), self.keeping)

    async def leaves(self, count: int, *, seconds: float = 30.0) -> None:
        """Return once `count` are left; fails after `seconds`."""
        last = -1
        try:
            async with asyncio.timeout(seconds):
                while (last := await self.left()) != count:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{last} are left, not {count}") from None


class ProxiedBed(Bed):
    """An upstream behind a network, which the source under test reaches through `proxy` alone."""

    proxy: Proxy
    """Set before the source is made, and running."""

    def settings_at(self, host: str) -> dict[str, Any]:
        """Return the configuration of a source of its kind on another host."""
        here = f"127.0.0.1:{self.proxy.port}"
        return {
            key: value.replace(here, f"{host}:{self.proxy.port}") if isinstance(value, str) else value
            for key, value in self.settings().items()
        }

    async def cut(self) -> None:
        self.proxy.cut()

    async def refuse(self, refusing: bool) -> None:
        self.proxy.refuse(refusing)
