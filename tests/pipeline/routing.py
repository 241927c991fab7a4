"""Routes with lanes behind them, and what becomes of one event there."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.intake import Intake
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.scripted import (
    ACCEPTED,
    Bench,
    MemoryJournal,
    MemoryKeeper,
    ScriptedDestination,
    event,
    settled,
)


def route(
    to: str = "plants", when: str | None = None, allow: list[str] | None = None, **others: Any
) -> RouteConfig:
    return RouteConfig.model_validate({"from": "uploads", "to": to, "when": when, "allow": allow, **others})


class House:
    """A router with lanes that run, one for each key of `answers`."""

    def __init__(self, *routes: RouteConfig, **answers: Answer) -> None:
        self.destinations = {key: ScriptedDestination(answer) for key, answer in answers.items()}
        self.journal = MemoryJournal()
        self.benches = {
            key: Bench(destination, journal=self.journal) for key, destination in self.destinations.items()
        }
        self.dead = MemoryKeeper()
        self.metrics = Metrics()
        lanes = {key: bench.lane for key, bench in self.benches.items()}
        source = self.metrics.source("uploads")
        intake = Intake(1000, 2**30, source)
        self.router = Router(routes, lanes, self.dead, source, intake, journal=self.journal)

    async def send(self, given: Event, *, fault: str | None = None) -> Outcome:
        delivery = Delivery(given, fault=fault)
        async with AsyncExitStack() as stack:
            for bench in self.benches.values():
                await stack.enter_async_context(bench.running())
            await self.router.route(delivery)
            (outcome,) = await settled([delivery])
        for bench in self.benches.values():
            bench.assert_nothing_is_remembered()
        return outcome

    def invoked(self, service: str) -> int:
        return len(self.destinations[service].began)

    def filtered(self, reason: str) -> float:
        labels = {"source": "uploads", "reason": reason}
        return self.metrics.registry.get_sample_value("bridge_events_filtered_total", labels) or 0.0


async def one(when: str, data: bytes = b"{}", **others: Any) -> tuple[str, str]:
    """What one event comes to at one route: `accepted`, a reason of a filter, or `route` with its detail."""
    house = House(route(when=when), plants=ACCEPTED)
    outcome = await house.send(event("a", data, **others))
    if outcome is Outcome.FILTERED:
        assert not house.invoked("plants")
        assert not house.dead.letters
        (reason,) = [
            reason for reason in ("no_match", "missing_key", "not_allowed") if house.filtered(reason)
        ]
        return reason, ""
    if outcome is Outcome.DEAD_LETTERED:
        assert not house.invoked("plants")
        (letter,) = house.dead.letters
        assert (letter.service, letter.attempts) == ("plants", 0)
        return letter.cause, letter.detail
    assert house.invoked("plants") == 1
    return outcome.name.lower(), ""
