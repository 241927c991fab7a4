"""The store against a model of it: whatever is done in whatever order, nothing is lost or there twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from bridge.core.ports import DeadLetter
from bridge.store import Filter, Store, orders, read_dead_letters
from bridge.telemetry.metrics import Metrics
from tests.store.events import event

_T = TypeVar("_T")

IDS = st.sampled_from(["a", "b", "c", "d+1"])
SERVICES = st.sampled_from(["plants", "flood"])
CAUSES = st.sampled_from(["too_large", "job_failed"])


@dataclass
class Kept:
    reason: str
    cause: str
    attempts: int


class TheStore(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.kept: dict[tuple[str, str], Kept] = {}
        """In the order of their numbers."""
        self.generations: dict[tuple[str, str], tuple[str, int]] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.open()

    def do(self, asked: Awaitable[_T]) -> _T:
        async def answer() -> _T:
            return await asked

        return self.runner.run(answer())

    def open(self) -> None:
        async def enter() -> None:
            self.metrics = Metrics(CollectorRegistry())
            self.context = Store.open(Path(self.directory.name), self.metrics)
            self.store = await self.context.__aenter__()

        self.do(enter())

    def close(self) -> None:
        self.do(self.context.__aexit__(None, None, None))

    @rule(event_id=IDS, service=SERVICES, attempts=st.integers(0, 3))
    def park(self, event_id: str, service: str, attempts: int) -> None:
        self.do(self.store.park(event(event_id), service, attempts=attempts))
        self._parked(event_id, service, attempts)

    def _parked(self, event_id: str, service: str, attempts: int) -> None:
        before = self.kept.get((event_id, service))
        if before is None:
            self.kept[event_id, service] = Kept("parked", "", attempts)
        elif before.cause != "job_failed":
            before.reason, before.cause = "parked", ""
            before.attempts = max(before.attempts, attempts)

    def _buried(self, event_id: str, service: str, cause: str) -> None:
        before = self.kept.setdefault((event_id, service), Kept("dead", cause, 1))
        before.reason, before.cause, before.attempts = "dead", cause, max(before.attempts, 1)

    @rule(event_id=IDS, service=SERVICES, cause=CAUSES)
    def bury(self, event_id: str, service: str, cause: str) -> None:
        self.do(self.store.bury(self._letter(event_id, service, cause)))
        self._buried(event_id, service, cause)

    def _letter(self, event_id: str, service: str, cause: str) -> DeadLetter:
        return DeadLetter(event=event(event_id), service=service, cause=cause, detail="", attempts=1)

    @rule(
        steps=st.lists(st.tuples(st.sampled_from(["park", "bury", "forget"]), IDS, SERVICES, CAUSES)),
    )
    def many_in_one_group(self, steps: list[tuple[str, str, str, str]]) -> None:
        """What is asked without waiting is done in the order it was asked."""

        async def ask() -> None:
            numbers = {}
            for service in ("plants", "flood"):
                for row in await self.store.parked(service, without=(), limit=100):
                    numbers[row.event.id, service] = row.number
            waiting = []
            for what, event_id, service, cause in steps:
                if what == "park":
                    call = self.store.park(event(event_id), service)
                    self._parked(event_id, service, 0)
                elif what == "bury":
                    call = self.store.bury(self._letter(event_id, service, cause))
                    self._buried(event_id, service, cause)
                else:
                    number = numbers.pop((event_id, service), None)
                    if number is not None:
                        self.store.forget(number)
                        if self.kept[event_id, service].reason == "parked":
                            del self.kept[event_id, service]
                            self.generations.pop((event_id, service), None)
                    continue
                waiting.append(asyncio.ensure_future(call))
                await asyncio.sleep(0)
            await asyncio.gather(*waiting)

        self.do(ask())

    @rule(service=SERVICES, as_new=st.booleans(), dry_run=st.booleans())
    def replay(self, service: str, as_new: bool, dry_run: bool) -> None:
        count = self.do(orders.replay(self.store, Filter(service=service), as_new=as_new, dry_run=dry_run))
        meant = [
            key
            for key, kept in self.kept.items()
            if key[1] == service and kept.reason == "dead" and (as_new or kept.cause != "job_failed")
        ]
        assert count.changed == len(meant)
        if dry_run:
            return
        for key in meant:
            new = self._renewed(key) if as_new else key
            # In the old place: the model's order is that of its keys.
            self.kept = {
                new if other == key else other: Kept("parked", "", 0) if other == key else kept
                for other, kept in self.kept.items()
            }

    def _renewed(self, key: tuple[str, str]) -> tuple[str, str]:
        event_id, service = key
        first, generation = self.generations.pop(key, (event_id, 0))
        generation = max(generation, self.last.get((first, service), 0)) + 1
        while (f"{first}+{generation}", service) in self.kept:
            generation += 1
        self.last[first, service] = generation
        new = (f"{first}+{generation}", service)
        self.generations[new] = (first, generation)
        return new

    @rule(service=SERVICES)
    def discard(self, service: str) -> None:
        count = self.do(orders.discard(self.store, Filter(service=service)))
        gone = [key for key, kept in self.kept.items() if key[1] == service and kept.reason == "dead"]
        assert count.changed == len(gone)
        for key in gone:
            del self.kept[key]
            self.generations.pop(key, None)

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()

    @invariant()
    def everything_is_where_it_belongs(self) -> None:
        for service in ("plants", "flood"):
            mine = {key[0]: kept for key, kept in self.kept.items() if key[1] == service}
            parked = [(key, kept.attempts) for key, kept in mine.items() if kept.reason == "parked"]
            rows = self.do(self.store.parked(service, without=(), limit=100))
            assert [(row.event.id, row.attempts) for row in rows] == parked
            assert self.store.waiting(service) == len(parked)
            dead = {(key, kept.cause) for key, kept in mine.items() if kept.reason == "dead"}
            letters = read_dead_letters(Path(self.directory.name), service)
            assert {(row.event_id, row.cause) for row in letters} == dead
            assert len(letters) == len(dead)
            self._counted(service, "dead", len(dead))

    def _counted(self, service: str, reason: str, expected: int) -> None:
        of_service = {"service": service}
        labels = {**of_service, "reason": reason}
        assert (self.metrics.registry.get_sample_value("bridge_kept_events", labels) or 0) == expected
        told = [
            self.metrics.registry.get_sample_value("bridge_dead_letters", {**of_service, "cause": cause})
            for cause in ("too_large", "job_failed")
        ]
        assert sum(count or 0 for count in told) == expected

    def teardown(self) -> None:
        self.close()
        self.runner.close()
        self.directory.cleanup()


TestTheStore = TheStore.TestCase
TestTheStore.settings = settings(
    max_examples=15, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
