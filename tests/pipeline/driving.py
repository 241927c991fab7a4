"""Drives scenarios through lanes and the ring of their cluster, in virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.ring import Ring
from tests.pipeline.clock import now
from tests.pipeline.scenarios import Ran, Scenario, Server
from tests.pipeline.scripted import Bench, event

AT_ONCE = 1000
"""What a lane itself allows: more than what is tried."""


class _Invocation:
    job = ""

    def __init__(self, server: Server, name: str, began: float) -> None:
        self._server, self._name, self._began = server, name, began

    async def attempt(self) -> Answer:
        answer, seconds = self._server.call(self._name, now() - self._began)
        await asyncio.sleep(seconds)
        return answer


class ServerDestination:
    """A service at `server`, whose time begins now."""

    def __init__(self, server: Server) -> None:
        self._server, self._began = server, now()

    def prepare(self, event: Event) -> _Invocation:
        return _Invocation(self._server, event.id, self._began)


async def drive(scenario: Scenario, seed: int, limit: Auto | Fixed, *, services: int = 1) -> Ran:
    """Put the events of `scenario` to services in turn, whose cluster has `limit`; all must be accepted."""
    random.seed(seed)  # of the pauses between attempts
    server = scenario.server(seed)
    ring = Ring([limit])
    benches = [Bench(ServerDestination(server), concurrency=AT_ONCE, ring=ring) for _ in range(services)]
    arrivals = scenario.arrivals(seed)
    began = now()
    accepted: dict[str, float] = {}
    all_accepted = asyncio.Event()

    def settled(delivery: Delivery, outcome: Outcome) -> None:
        assert outcome is Outcome.ACCEPTED, outcome
        accepted[delivery.event.id] = now() - began
        if len(accepted) == len(arrivals):
            all_accepted.set()

    async def arrive(bench: Bench, first: int) -> None:
        for number in range(first, len(arrivals), services):
            if (pause := began + arrivals[number] - now()) > 0:
                await asyncio.sleep(pause)
            delivery = Delivery(event(number))
            delivery.watch(settled)
            await bench.put([delivery])

    async with AsyncExitStack() as running, asyncio.timeout(24 * 3600), asyncio.TaskGroup() as arriving:
        for first, bench in enumerate(benches):
            await running.enter_async_context(bench.running())
            arriving.create_task(arrive(bench, first))
        await all_accepted.wait()
    assert not any(bench.dead.letters for bench in benches)
    return Ran(server, arrivals, accepted)
