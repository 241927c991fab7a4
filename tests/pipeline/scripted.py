"""Destinations, dead letters and events of the tests' own, and a lane between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError, StoreFullError
from bridge.core.event import Event
from bridge.core.jobs import JobChanges, JobMaker, JobRecord, Progress
from bridge.core.journal import What
from bridge.core.ports import Answer, DeadLetter, Destination, InOrder, Parked, Verdict
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.lane import Lane
from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.retry import RetryConfig
from bridge.store.clock import Clock
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now

ACCEPTED = Answer(Verdict.ACCEPTED, status=201)
DUPLICATE = Answer(Verdict.DUPLICATE, status=500)
FAILED = Answer(Verdict.FAILED, "http_500", "boom", status=500, perhaps_its_own=True)
UNAVAILABLE = Answer(Verdict.UNAVAILABLE, "http_502", "no backend", status=502, perhaps_its_own=True)
BUSY = Answer(Verdict.CAPACITY, "http_503", "too much to do", status=503, perhaps_its_own=True)
UNREACHABLE = Answer(Verdict.UNAVAILABLE, "connect", "connection refused")
REFUSED = Answer(Verdict.REFUSED, "http_404", "no such service", status=404)
REJECTED = Answer(Verdict.REJECTED, "http_413", "body too large", status=413)
TOO_LARGE = Answer(Verdict.REJECTED, "too_large", "131066 > 131065")
UNKNOWN = Answer(Verdict.UNKNOWN, "outcome_unknown", "answer lost")

Script = Callable[[Event], Answer | Awaitable[Answer]]


def event(name: object, data: bytes = b"{}", **others: Any) -> Event:
    return Event(id=str(name), source="uploads", type="test", data=data, **others)


def deliveries(count: int, prefix: str = "") -> list[Delivery]:
    return [Delivery(event(f"{prefix}{number}")) for number in range(count)]


class ScriptedDestination:
    """Answers as its script says, after `seconds`; remembers every attempt."""

    def __init__(self, script: Script | Answer = ACCEPTED, *, seconds: float = 0.0) -> None:
        self.script = script
        self.seconds = seconds
        self.prepared: list[str] = []
        self.began: list[tuple[float, str]] = []
        self.active = 0
        self.peak = 0

    @property
    def ids(self) -> list[str]:
        return [name for _, name in self.began]

    def times(self, name: str) -> list[float]:
        return [at for at, other in self.began if other == name]

    def prepare(self, event: Event) -> ScriptedInvocation:
        self.prepared.append(event.id)
        return ScriptedInvocation(self, event)

    async def attempt(self, event: Event) -> Answer:
        self.began.append((now(), event.id))
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
            answer = self.script if isinstance(self.script, Answer) else self.script(event)
            return answer if isinstance(answer, Answer) else await answer
        finally:
            self.active -= 1


class ScriptedInvocation:
    def __init__(self, destination: ScriptedDestination, event: Event) -> None:
        self._destination = destination
        self._event = event
        self.job = f"job-{event.id}"

    async def attempt(self) -> Answer:
        return await self._destination.attempt(self._event)


class MemoryJournal:
    """Keeps what is noted, without what is empty."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def note(
        self,
        what: What,
        event: Event,
        service: str = "",
        at: float | None = None,
        since: float | None = None,
        job: str = "",
        attempts: int = 0,
        **more: Any,
    ) -> None:
        told = {"id": event.id, "service": service, "at": at, "since": since, "job": job, **more}
        told["attempts"] = attempts
        self.lines.append({"what": what, **{name: value for name, value in told.items() if value}})

    def of(self, name: str) -> list[str]:
        """Return what happened to the event with that id."""
        return [line["what"] for line in self.lines if line["id"] == name]


class MemoryKeeper:
    """Keeps letters and parked events in memory, or fails while `broken`."""

    def __init__(self, *, seen: float = 0.0) -> None:
        """`seen` is the newest time that it knows, as a store does that was open before."""
        self.letters: list[DeadLetter] = []
        self.rows: dict[tuple[str, str, str], Parked] = {}
        """Parked events by source, id and service, in the order of their numbers."""
        self.job_records: dict[str, dict[str, JobRecord]] = {}
        """By service and name."""
        self.remembered: set[tuple[str, str]] = set()
        """Services and names of jobs that were to be removed."""
        self.notes: list[int] = []
        """How many names each transaction about jobs has noted."""
        self.broken = False
        self.full = False
        self.for_letters_alone = False
        """Whether it is so near its budget that it keeps dead letters only."""
        self.refusals = 0
        self.now = Clock(seen).now
        self._numbers = count(1)
        self._forgotten: set[int] = set()
        self._wakes: dict[str, Callable[[], None]] = {}

    @property
    def causes(self) -> dict[str, str]:
        return {letter.event.id: letter.cause for letter in self.letters}

    @property
    def parked_ids(self) -> list[str]:
        return [row.event.id for row in self.rows.values()]

    async def bury(self, letter: DeadLetter) -> None:
        await self._write()
        self.letters.append(letter)
        self.rows.pop((letter.event.source, letter.event.id, letter.service), None)

    async def park(
        self, event: Event, service: str, *, attempts: int = 0, first_attempt: float | None = None
    ) -> None:
        number = next(self._numbers)  # in the order of the calls, as the writer's queue has them
        key = (event.source, event.id, service)
        before = self.rows.get(key)
        await self._write()
        old = self.rows.get(key)
        if before is not None and before.number in self._forgotten:
            return  # as in the writer's queue, where it is taken away behind this
        if self.for_letters_alone and old is None:
            self.refusals += 1
            raise StoreFullError("at its budget")
        self.rows[key] = Parked(
            number=number if old is None else old.number,
            event=event,
            attempts=attempts if old is None else max(attempts, old.attempts),
            first_attempt=first_attempt if old is None or old.first_attempt is None else old.first_attempt,
            order_key=None if old is None else old.order_key,
        )

    async def park_in_order(self, service: str, events: Sequence[InOrder]) -> None:
        keys = [(each.event.source, each.event.id, service) for each in events]
        places = [(next(self._numbers), self.rows.get(key)) for key in keys]
        await self._write()
        rows = {}
        for (number, before), key, each in zip(places, keys, events, strict=True):
            if before is not None and before.number in self._forgotten:
                continue
            old = self.rows.get(key)
            if self.for_letters_alone and old is None:
                self.refusals += 1
                raise StoreFullError("at its budget")
            rows[key] = Parked(
                number=number if old is None else old.number,
                event=each.event,
                attempts=each.attempts if old is None else max(each.attempts, old.attempts),
                first_attempt=each.first_attempt
                if old is None or old.first_attempt is None
                else old.first_attempt,
                order_key=each.order_key,
            )
        self.rows.update(rows)

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
        without, without_keys = set(without), set(without_keys)  # as they are when it is asked
        await self._write()
        wanted = [
            row
            for (_, _, of), row in self.rows.items()
            if of == service
            and after < row.number not in without
            and (order_key is None or row.order_key == order_key)
            and (row.order_key is None or row.order_key not in without_keys)
        ]
        return sorted(wanted, key=lambda row: row.number)[:limit]

    def forget(self, number: int) -> None:
        self._forgotten.add(number)
        self.rows = {key: row for key, row in self.rows.items() if row.number != number}

    def waiting(self, service: str) -> int:
        return sum(of == service for _, _, of in self.rows)

    async def jobs(self, service: str) -> Sequence[JobRecord]:
        await self._write()
        return list(self.job_records.get(service, {}).values())

    async def event_of_job(self, service: str, name: str) -> Event | None:
        await self._write()
        record = self.job_records.get(service, {}).get(name)
        return None if record is None else record.event

    async def change_jobs(self, service: str, changes: JobChanges) -> Collection[str]:
        records = self.job_records.setdefault(service, {})
        await self._write()
        self.notes.append(len(changes.note))
        for name in changes.forget:
            records.pop(name, None)
        self.remembered |= {(service, name) for name in changes.remember}
        removed = {name for name in changes.note if (service, name) in self.remembered}
        for name, event in changes.note.items():
            if name in removed:
                continue
            record = JobRecord(name=name, event=event, progress=Progress.NOTED, accepted_at=None)
            records.setdefault(name, record)
        for name, (progress, accepted_at) in changes.progress.items():
            if name in records:
                records[name] = replace(records[name], progress=progress, accepted_at=accepted_at)
        return removed

    def on_parked(self, service: str, wake: Callable[[], None]) -> None:
        self._wakes[service] = wake

    async def replay(self, *events: Event, service: str = "plants") -> None:
        """Park as a command does, beside the lane."""
        for one in events:
            await self.park(one, service)
        self._wakes[service]()

    async def _write(self) -> None:
        await asyncio.sleep(0.001)
        if self.full:
            self.refusals += 1
            raise StoreFullError("at its budget")
        if self.broken:
            self.refusals += 1
            raise StoreError("disk full")


class Bench:
    """A lane with what it works against."""

    def __init__(
        self,
        destination: Destination,
        *,
        key: str = "plants",
        queue: int = 1000,
        concurrency: int = 4,
        rate: str | None = None,
        give_up_after: float = 24 * 3600.0,
        max_attempts: int = 8,
        max_backoff: float = 60.0,
        park: bool = False,
        park_after: float = 60.0,
        keeper: MemoryKeeper | None = None,
        ring: Ring | None = None,
        pauses: Sequence[Pause] = (),
        active_jobs: int | None = None,
        on_failure: Literal["ignore", "dead-letter"] = "ignore",
        remove_finished: bool = False,
        maker: JobMaker | None = None,
        journal: MemoryJournal | None = None,
    ) -> None:
        self.keeper = self.dead = keeper or MemoryKeeper()
        self.journal = journal or MemoryJournal()
        self.metrics = Metrics()
        self.lane = Lane(
            key,
            LaneConfig(
                queue=queue,
                limits=LimitsConfig.model_validate(
                    {"concurrency": concurrency, "rate": rate, "active_jobs": active_jobs}
                ),
                on_failure=on_failure,
                remove_finished=remove_finished,
                park=park,
                park_after=park_after,
                retry=RetryConfig(
                    give_up_after=give_up_after, max_attempts=max_attempts, max_backoff=max_backoff
                ),
            ),
            destination,
            self.dead,
            self.metrics.lane(key),
            ring,
            pauses,
            maker,
            self.journal,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"service": self.lane.key, **labels}) or 0.0

    def invocations(self, outcome: str) -> float:
        return self.value("bridge_invocations_total", outcome=outcome)

    async def put(self, given: Iterable[Delivery]) -> None:
        for delivery in given:
            await self.lane.put(delivery)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.lane.run())
        try:
            yield
        finally:
            await stop(task)

    def assert_nothing_is_remembered(self) -> None:
        lane = self.lane
        assert not len(lane._waiting)
        assert not lane._places.busy
        assert not len(lane._failures)
        assert not lane._places._ready
        assert not lane._places._failed
        assert not lane._places._failed_bytes
        assert not lane._room.entrance._held
        assert not lane._burials._letters
        assert not lane._room.parking._to_write
        assert not lane._room.parking._to_note
        assert not lane._room.parking._back
        if lane.jobs is not None:
            assert not lane.jobs._of
            assert not lane.jobs._jobs
            assert not lane.jobs._under_way
            assert not lane.jobs._left_to_do
        if lane._places.are_open:  # what a lane was cancelled in the midst of it does not hear the end of
            assert lane._gate._probe is None
            assert not lane.allowance.under_way
        assert self.value("bridge_lane_queued") == 0
        assert self.value("bridge_lane_in_flight") == 0


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # raises what it ended with
        raise AssertionError(f"{task} ended by itself")


async def settled(given: Iterable[Delivery], within: float = 3600.0) -> list[Outcome]:
    """Wait until all of `given` are settled, and give their outcomes."""
    given = list(given)
    left = {id(delivery) for delivery in given}
    done = asyncio.Event()

    def record(delivery: Delivery, _outcome: Outcome) -> None:
        left.discard(id(delivery))
        if not left:
            done.set()

    for delivery in given:
        delivery.watch(record)
    if left:
        async with asyncio.timeout(within):
            await done.wait()
    return [delivery.outcome for delivery in given if delivery.outcome is not None]
