"""A bridge whose routes send events together, on the store's own SQL in virtual time, and killed at will."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreFullError
from bridge.core.event import Event
from bridge.core.ports import Answer, DeadLetter, InOrder, Parked
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.pipeline.merging import Merging
from bridge.pipeline.retry import RetryConfig
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.pipeline.windows import Recipient, Windows
from bridge.store import changes, migrations, parked, schema
from bridge.store.changes import Change
from bridge.store.windows import Windows as KeptWindows
from bridge.telemetry.metrics import Metrics
from tests.pipeline import clock
from tests.pipeline.scripted import ACCEPTED, MemoryJournal, MemoryKeeper, ScriptedDestination, stop

_T = TypeVar("_T")
MOST_REMEMBERED = 10 * 2**20


class SqlKeeper(MemoryKeeper):
    """The store in memory that outlives its bridge, which is killed at the steps it is told.

    A step is each transaction, once before it is made and once after: then nobody hears of it any more, nor
    of anything later.
    """

    def __init__(self, connection: sqlite3.Connection, kill_at: Collection[int] = ()) -> None:
        super().__init__()
        self.connection = connection
        self.killed = asyncio.Event()
        self.steps = 0
        self.no_room = False
        self._kill_at = kill_at
        self._wakes_of: dict[str, Callable[[], None]] = {}
        self.kept = Counter[tuple[str, str]]()
        self.now = self.steady = clock.wall_clock

    async def step(self) -> None:
        """Come to a moment at which the bridge may be killed."""
        if self.killed.is_set():
            await asyncio.Future()
        self.steps += 1
        if self.steps in self._kill_at:
            self.killed.set()
            await asyncio.Future()

    async def read(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        await asyncio.sleep(0.001)
        return question(self.connection)

    async def write(self, call: Callable[[sqlite3.Connection], tuple[_T, Change]], size: int = 0) -> _T:
        await asyncio.sleep(0.001)
        if self.no_room and size:
            raise StoreFullError("at its budget")
        await self.step()
        with schema.transaction(self.connection):
            result, change = call(self.connection)
        await self.step()
        for service in change.returned & self._wakes_of.keys():
            self._wakes_of[service]()
        return result

    def finish(self, done: Any) -> bool:
        raise NotImplementedError

    async def bury(self, letter: DeadLetter) -> None:
        await self.write(lambda connection: self._keep(connection, schema.dead_row(letter)))

    async def park(
        self, event: Event, service: str, *, attempts: int = 0, first_attempt: float | None = None
    ) -> None:
        row = schema.parked_row(event, service, attempts, first_attempt)
        await self.write(lambda connection: self._keep(connection, row))

    def _keep(self, connection: sqlite3.Connection, row: schema.Row) -> tuple[None, Change]:
        change = Change()
        changes.keep(connection, row, change)
        return None, change

    async def park_in_order(self, service: str, events: Sequence[InOrder]) -> None:
        for each in events:
            await self.park(each.event, service, attempts=each.attempts, first_attempt=each.first_attempt)

    async def parked(
        self,
        service: str,
        *,
        without: Collection[int],
        limit: int,
        order_key: int | None = None,
        without_keys: Collection[int] = (),
        after: int = 0,
    ) -> Sequence[Parked]:
        return await self.read(
            lambda connection: parked.oldest(
                connection,
                service,
                without,
                limit,
                order_key=order_key,
                without_keys=without_keys,
                after=after,
            )
        )

    def forget(self, number: int) -> None:
        if not self.killed.is_set():
            self.connection.execute("DELETE FROM kept WHERE number = ? AND reason = 'parked'", (number,))

    def waiting(self, service: str) -> int:
        return self.count("parked", service)

    def count(self, reason: str, service: str = "plants") -> int:
        (count,) = self.connection.execute(
            "SELECT count(*) FROM kept WHERE reason = ? AND service = ?", (reason, service)
        ).fetchone()
        return int(count)

    def on_parked(self, service: str, wake: Callable[[], None]) -> None:
        self._wakes_of[service] = wake


class Gathering:
    """Events of one source on their way to `plants` through routes that send them together.

    It goes on after each kill with what the store and the source have: whatever was not settled comes again.
    """

    def __init__(
        self,
        *routes: Mapping[str, Any],
        event_bytes: int = 131_065,
        reads_all_records: bool = False,
        kill_at: Sequence[Collection[int]] = (),
        answer: Callable[[Event], Answer] = lambda _: ACCEPTED,
    ) -> None:
        self.configure(*routes)
        self.recipient = Recipient(
            event_bytes, lambda event: len(event.data) <= event_bytes, reads_all_records
        )
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.text_factory = schema.text
        migrations.upgrade(self.connection)
        self._kills = iter(kill_at)
        self._answer = answer
        self.jobs: dict[str, Event] = {}
        """What was accepted, by its id: a second one of the same id makes no other job."""
        self.attempts: list[tuple[float, str]] = []
        self.unsettled: dict[str, Event] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.keeper = SqlKeeper(self.connection)
        self.journal = MemoryJournal()
        self.metrics = Metrics(CollectorRegistry())

    def configure(self, *routes: Mapping[str, Any]) -> None:
        """Have these routes from the next start on."""
        self.routes = [
            RouteConfig.model_validate({"from": "uploads", "to": "plants", **one}) for one in routes
        ]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run one process, until the end of the block or a kill."""
        self.keeper = keeper = SqlKeeper(self.connection, next(self._kills, ()))
        self.metrics = Metrics(CollectorRegistry())
        destination = ScriptedDestination(self._attempted, seconds=0.002)
        config = LaneConfig(retry=RetryConfig(max_backoff=1.0))
        lane = Lane("plants", config, destination, keeper, self.metrics.lane("plants"))
        merging = [(route, Merging(route, route.encode)) for route in self.routes if route.merges]
        self.windows = Windows(
            KeptWindows(keeper, MOST_REMEMBERED),
            {"plants": self.recipient},
            {("uploads", route.to, one.name): one for route, one in merging},
            self.metrics,
            self.journal,
        )
        source = self.metrics.source("uploads")
        intake = Intake(10**6, 2**30, source)
        self.router = Router(self.routes, {"plants": lane}, keeper, source, intake, self.windows)
        self.windows.listens("uploads", True)
        tasks = [asyncio.create_task(lane.run()), asyncio.create_task(self.windows.run())]
        try:
            for event in list(self.unsettled.values()):
                await self.send(event)
            yield
        finally:
            for task in tasks:
                await stop(task)

    async def _attempted(self, event: Event) -> Answer:
        await self.keeper.step()
        answer = self._answer(event)
        self.attempts.append((clock.now(), event.id))
        if answer.accepted:
            self.jobs.setdefault(event.id, event)
        await self.keeper.step()
        return answer

    async def send(self, event: Event) -> None:
        self.unsettled[event.id] = event
        if not self.keeper.killed.is_set():
            await self.router.route(Delivery(event, self._settled))

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        if not self.keeper.killed.is_set():
            self.outcomes[delivery.event.id] = outcome
            self.unsettled.pop(delivery.event.id, None)

    async def idle(self, within: float = 100 * 3600.0) -> None:
        """Wait until nothing is in the store but dead letters, or the bridge is killed."""
        until, pause = clock.now() + within, 0.5
        while not self.keeper.killed.is_set() and (self.unsettled or self._left()):
            assert clock.now() < until, (self.unsettled, self._left())
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, 3600.0)

    def _left(self) -> int:
        (kept,) = self.connection.execute("SELECT count(*) FROM kept WHERE reason != 'dead'").fetchone()
        (windows,) = self.connection.execute("SELECT count(*) FROM windows").fetchone()
        return int(kept + windows)

    @property
    def sent(self) -> list[list[Any]]:
        """What the accepted jobs hold: for each the data of its members."""
        return [members_of(event) for event in self.jobs.values()]

    @property
    def dead(self) -> list[list[Any]]:
        """What the dead letters hold, likewise."""
        rows = self.connection.execute(f"SELECT {schema.EVENT} FROM kept WHERE reason = 'dead'")
        return [members_of(schema.to_event(row)) for row in rows]


def members_of(event: Event) -> list[Any]:
    """Take apart what was put together, of members whose data are JSON."""
    if event.data.startswith(b'{"events":'):
        return list(json.loads(event.data)["events"])
    if event.data.startswith(b'{"Records":'):
        return list(json.loads(event.data)["Records"])
    return [json.loads(line) for line in event.data.split(b"\n")]
