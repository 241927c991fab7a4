"""The slots of a source, and the runner that keeps it open."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.ports import Slots
from bridge.pipeline.intake import Intake
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.pipeline.runner import Runner
from bridge.telemetry.metrics import Metrics
from tests.pipeline import clock
from tests.pipeline.scripted import ACCEPTED, Bench, ScriptedDestination, deliveries, event, settled, stop


class _Slots:
    def __init__(self, max_in_flight: int = 10, max_bytes: int = 1000) -> None:
        self.metrics = Metrics()
        self.intake = Intake(max_in_flight, max_bytes, self.metrics.source("uploads"))

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"source": "uploads", **labels}) or 0.0


# --- intake -----------------------------------------------------------------------------------


async def test_a_delivery_takes_a_slot_until_it_settles() -> None:
    slots = _Slots(3)
    first, second = deliveries(2)
    slots.intake.admit([first, second])
    assert slots.intake.free == 1
    assert slots.intake.in_flight == slots.value("bridge_source_in_flight") == 2
    first.settle(Outcome.ACCEPTED)
    assert slots.intake.free == 2
    second.settle(Outcome.DEAD_LETTERED)
    assert slots.intake.free == 3
    assert slots.value("bridge_events_received_total") == 2
    assert slots.value("bridge_events_settled_total", outcome="accepted") == 1
    assert slots.value("bridge_events_settled_total", outcome="dead_lettered") == 1
    assert slots.value("bridge_source_in_flight") == 0


async def test_bytes_fill_the_slots_as_well() -> None:
    slots = _Slots(10, 100)
    small, big = Delivery(event("small", b"x" * 99)), Delivery(event("big", b"x" * 50))
    slots.intake.admit([small])
    assert slots.intake.free == 9
    slots.intake.admit([big])
    assert slots.intake.free == 0
    small.settle(Outcome.ACCEPTED)
    assert slots.intake.free == 9


async def test_attributes_take_room_too() -> None:
    slots = _Slots(10, 100)
    delivery = Delivery(event("a", b"x", attributes={"header.a": "y" * 60, "header.b": "z" * 60}))
    slots.intake.admit([delivery])
    assert slots.intake.free == 0
    delivery.settle(Outcome.ACCEPTED)
    assert slots.intake.free == 10


async def test_one_event_above_the_bound_is_always_let_in() -> None:
    slots = _Slots(10, 100)
    huge = Delivery(event("huge", b"x" * 5000))
    assert slots.intake.free
    slots.intake.admit([huge])
    assert slots.intake.free == 0
    waiting = asyncio.create_task(slots.intake.wait())
    await asyncio.sleep(10)
    assert not waiting.done()
    huge.settle(Outcome.ACCEPTED)
    await asyncio.wait_for(waiting, 1)


async def test_a_source_that_gives_too_much_is_let_in_and_then_has_no_slot() -> None:
    slots = _Slots(2)
    given = deliveries(5)
    slots.intake.admit(given)
    assert slots.intake.free == 0
    for delivery in given[:3]:
        delivery.settle(Outcome.ACCEPTED)
    assert slots.intake.free == 0
    given[3].settle(Outcome.ACCEPTED)
    assert slots.intake.free == 1


async def test_a_delivery_that_was_settled_before_keeps_no_slot() -> None:
    slots = _Slots()
    (delivery,) = deliveries(1)
    delivery.settle(Outcome.RELEASED)
    slots.intake.admit([delivery])
    assert slots.intake.in_flight == 0
    await asyncio.wait_for(slots.intake.drained(), 1)
    assert slots.value("bridge_events_settled_total", outcome="released") == 1


async def test_everyone_who_waits_is_told_of_a_free_slot_and_a_cancelled_wait_harms_nobody() -> None:
    slots = _Slots(1)
    (delivery,) = deliveries(1)
    slots.intake.admit([delivery])
    waiting = [asyncio.create_task(slots.intake.wait()) for _ in range(3)]
    await asyncio.sleep(1)
    await stop(waiting.pop())
    delivery.settle(Outcome.ACCEPTED)
    await asyncio.wait_for(asyncio.gather(*waiting), 1)


async def test_a_closed_intake_gives_no_slot_ever() -> None:
    slots = _Slots(1)
    (delivery,) = deliveries(1)
    slots.intake.admit([delivery])
    waiting = asyncio.create_task(slots.intake.wait())
    await asyncio.sleep(0)
    slots.intake.close()
    delivery.settle(Outcome.ACCEPTED)
    await asyncio.sleep(3600)
    assert slots.intake.free == 0
    await stop(waiting)


async def test_drained_waits_for_the_last_and_release_gives_back_the_rest() -> None:
    slots = _Slots()
    await asyncio.wait_for(slots.intake.drained(), 1)  # nothing was ever there
    first, second, third = deliveries(3)
    slots.intake.admit([first, second, third])
    drained = asyncio.create_task(slots.intake.drained())
    first.settle(Outcome.ACCEPTED)
    await asyncio.sleep(1)
    assert not drained.done()
    assert slots.intake.release() == 2
    await asyncio.wait_for(drained, 1)
    assert [first.outcome, second.outcome, third.outcome] == [
        Outcome.ACCEPTED,
        Outcome.RELEASED,
        Outcome.RELEASED,
    ]
    assert slots.intake.release() == 0
    assert slots.value("bridge_events_settled_total", outcome="released") == 2


async def test_a_parent_holds_one_slot_until_its_last_child_settles() -> None:
    slots = _Slots(1)
    (parent,) = deliveries(1)
    slots.intake.admit([parent])
    first, second = parent.split([event("a"), event("b")])
    first.settle(Outcome.ACCEPTED)
    assert slots.intake.free == 0
    second.settle(Outcome.DEAD_LETTERED)
    assert slots.intake.free == 1
    assert slots.value("bridge_events_settled_total", outcome="dead_lettered") == 1


async def test_the_age_of_the_oldest_unsettled_is_told() -> None:
    slots = _Slots()
    assert slots.value("bridge_oldest_unsettled_seconds") == 0
    (old,) = deliveries(1)
    slots.intake.admit([old])
    await asyncio.sleep(10)
    (young,) = deliveries(1)
    slots.intake.admit([young])
    await asyncio.sleep(5)
    assert slots.value("bridge_oldest_unsettled_seconds") == pytest.approx(15)
    old.settle(Outcome.ACCEPTED)
    assert slots.value("bridge_oldest_unsettled_seconds") == pytest.approx(5)
    young.settle(Outcome.ACCEPTED)
    assert slots.value("bridge_oldest_unsettled_seconds") == 0


# --- runner -----------------------------------------------------------------------------------


class _Source:
    """Gives what `put` hands it; is lost when told, or when it can't be opened."""

    def __init__(self) -> None:
        self.opens: list[float] = []
        self.closes = 0
        self.can_open: Callable[[], bool] = lambda: True
        self.fail_to_open: Callable[[], None] | None = None
        self.fail_to_close: Callable[[], None] | None = None
        self.fail_to_tell: Callable[[], None] | None = None
        self.lost_on_leaving = False
        self.refused_on_leaving = False
        self.trouble: list[str] = []
        self.unsettled: set[Delivery] = set()
        self._news: asyncio.Queue[Sequence[Delivery] | Callable[[], None] | None] = asyncio.Queue()

    def put(self, *batch: Delivery) -> None:
        self.unsettled.update(batch)
        for delivery in batch:
            delivery.watch(lambda delivery, _outcome: self.unsettled.discard(delivery))
        self._news.put_nowait(batch)

    def lose(self) -> None:
        for delivery in tuple(self.unsettled):
            delivery.settle(Outcome.RELEASED)
        self._news.put_nowait(None)

    def put_failure(self, fail: Callable[[], None]) -> None:
        """Fail at the next batch, and settle nothing."""
        self._news.put_nowait(fail)

    def problems(self) -> Sequence[str]:
        if self.fail_to_tell is not None:
            self.fail_to_tell()
        return self.trouble

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        self.opens.append(clock.now())
        await asyncio.sleep(0.1)
        if self.fail_to_open is not None:
            self.fail_to_open()
        if not self.can_open():
            raise SourceLost("connection refused")
        try:
            yield self._batches(slots)
        finally:
            self.closes += 1
            if self.fail_to_close is not None:
                self.fail_to_close()
            if self.refused_on_leaving:
                with suppress(ExceptionGroup):
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._refused())
            if self.lost_on_leaving:
                raise SourceLost("can't commit")

    async def _refused(self) -> None:
        await asyncio.sleep(0.1)
        raise SourceLost("may not delete")

    async def _batches(self, slots: Slots) -> AsyncIterator[Sequence[Delivery]]:
        while True:
            assert slots.free
            batch = await self._news.get()
            if batch is None:
                raise SourceLost("connection reset")
            if callable(batch):
                batch()
                continue
            if not batch:
                return
            yield batch


class _House:
    """A source, a runner, a router and a lane that runs."""

    def __init__(
        self,
        *,
        max_in_flight: int = 10,
        queue: int = 1000,
        seconds: float = 0.0,
        holds_unread: bool = False,
    ) -> None:
        self.source = _Source()
        self.destination = ScriptedDestination(ACCEPTED, seconds=seconds)
        self.bench = Bench(self.destination, queue=queue, concurrency=1)
        source = self.bench.metrics.source("uploads")
        self.intake = Intake(max_in_flight, 10**6, source)
        route = RouteConfig.model_validate({"from": "uploads", "to": "plants"})
        router = Router([route], {"plants": self.bench.lane}, self.bench.dead, source, self.intake)
        self.runner = Runner("uploads", self.source, self.intake, router, source, holds_unread=holds_unread)

    @property
    def up(self) -> float | None:
        return self.bench.metrics.registry.get_sample_value("bridge_source_up", {"source": "uploads"})

    @property
    def losses(self) -> float | None:
        return self.bench.metrics.registry.get_sample_value(
            "bridge_source_losses_total", {"source": "uploads"}
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        async with self.bench.running():
            task = asyncio.create_task(self.runner.run())
            try:
                yield task
            finally:
                if not task.done():
                    await stop(task)
        assert self.up == 0


async def test_events_go_from_the_source_to_the_service() -> None:
    house = _House()
    assert house.runner.problems() == ["not connected yet"]
    given = deliveries(5)
    async with house.running():
        house.source.put(*given[:2])
        house.source.put(*given[2:])
        assert await settled(given) == [Outcome.ACCEPTED] * 5
        assert house.runner.problems() == []
        assert house.up == 1
        house.source.trouble = ["2 events lost upstream"]
        assert house.runner.problems() == ["2 events lost upstream"]
    assert house.destination.ids == ["0", "1", "2", "3", "4"]
    assert (len(house.source.opens), house.source.closes) == (1, 1)


async def test_no_batch_is_pulled_without_a_slot() -> None:
    house = _House(max_in_flight=2, seconds=100)
    given = deliveries(4)
    async with house.running():
        house.source.put(*given[:2])
        house.source.put(*given[2:])
        await asyncio.sleep(50)
        assert house.intake.in_flight == 2
        assert house.intake.free == 0
        await asyncio.sleep(100)
        assert house.intake.in_flight == 3
        await settled(given)


async def test_a_paused_source_stays_open_and_gives_no_slot() -> None:
    house = _House(seconds=1)
    given = deliveries(8)
    async with house.running():
        house.source.put(*given[:4])
        await asyncio.sleep(0.5)
        house.intake.pause(True)
        house.source.put(*given[4:6])  # what is on its way is let in
        house.source.put(*given[6:])
        await asyncio.sleep(3600)
        assert [delivery.outcome for delivery in given] == [Outcome.ACCEPTED] * 6 + [None] * 2
        assert house.intake.in_flight == house.intake.free == 0
        assert (house.up, house.runner.problems()) == (1, [])
        house.intake.pause(False)
        assert await settled(given) == [Outcome.ACCEPTED] * 8
    assert (len(house.source.opens), house.source.closes) == (1, 1)


async def test_one_that_would_hold_what_it_has_not_handed_over_is_left_once_all_in_hand_is_settled() -> None:
    house = _House(seconds=10, holds_unread=True)
    given = deliveries(3)
    async with house.running():
        house.source.put(*given)
        await asyncio.sleep(5)
        for _ in range(2):
            house.intake.pause(True)
            house.intake.pause(True)
            await asyncio.sleep(5)
            assert house.source.closes == 0, "what it has goes on"
            house.intake.pause(False)
            await asyncio.sleep(0.1)
        assert len(house.source.opens) == 1, "a pause that ends before leaves nothing"
        house.intake.pause(True)
        assert await settled(given) == [Outcome.ACCEPTED] * 3
        await asyncio.sleep(3600)
        assert (len(house.source.opens), house.source.closes) == (1, 1)
        assert (house.up, house.losses, house.runner.problems()) == (0, 0, [])
        house.intake.pause(False)
        await asyncio.sleep(0.2)
        assert (len(house.source.opens), house.up) == (2, 1)
        assert house.runner.problems() == []
        house.source.put(*(more := deliveries(1, "more")))
        assert await settled(more) == [Outcome.ACCEPTED]
        house.source.lose()
        await asyncio.sleep(5)
        assert house.losses == 1
        assert len(house.source.opens) == 3, "losses are as before"


async def test_such_a_source_is_not_opened_in_a_pause_and_a_stop_ends_the_waiting() -> None:
    house = _House(holds_unread=True)
    house.intake.pause(True)
    async with house.running():
        await asyncio.sleep(3600)
        assert house.source.opens == []
        assert house.runner.problems() == []
    assert house.source.closes == 0


async def test_a_lost_source_is_opened_again_and_says_so() -> None:
    house = _House(seconds=100)
    first, second = deliveries(2)
    async with house.running():
        house.source.put(first, second)
        await asyncio.sleep(1)
        house.source.lose()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert house.runner.problems() == ["lost: connection reset"]
        assert house.up == 0
        assert house.bench.value("bridge_lane_queued") == 0, "no stale copy beside its redelivery"
        assert house.intake.in_flight == 0
        await asyncio.sleep(1)
        (told,) = house.runner.problems()
        assert told.startswith("lost: connection reset (over for ")
        assert house.up == 1
        again = Delivery(first.event)
        house.source.put(again)
        assert await settled([again], within=300) == [Outcome.ACCEPTED]
    assert len(house.source.opens) == house.source.closes == 2


async def test_a_source_whose_last_calls_are_refused_is_opened_again() -> None:
    """They leave a cancellation of its task behind (python/cpython#116720), which is no reason to stop."""
    house = _House()
    house.source.refused_on_leaving = True
    async with house.running():
        for opens in range(1, 5):
            given = deliveries(1)
            house.source.put(*given)
            await settled(given)
            assert len(house.source.opens) == opens
            house.source.lose()
            await asyncio.sleep(1)
        assert house.up == 1
    assert len(house.source.opens) == house.source.closes == 5


async def test_a_source_that_cannot_be_opened_is_tried_ever_more_slowly() -> None:
    house = _House()
    house.source.can_open = lambda: False
    async with house.running():
        await asyncio.sleep(60)
        assert house.runner.problems() == ["can't be opened: connection refused"]
        assert house.up == 0
        await asyncio.sleep(6 * 3600)
        opens = house.source.opens
        gaps = [later - earlier for earlier, later in pairwise(opens)]
        assert all(gap <= 0.101 + min(0.5 * 2 ** min(number, 9), 30) for number, gap in enumerate(gaps))
        assert max(gaps) > 25
        assert 6 * 120 <= len(opens) <= 6 * 480  # 15 s apart on average
        house.source.can_open = lambda: True
        await asyncio.sleep(31)
        assert house.runner.problems() == []
        assert house.up == 1


async def test_what_an_opening_leaves_in_reference_cycles_is_gone_at_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a session with its certificate authorities, whose error holds it."""

    class Session:
        error: SourceLost

    house = _House()
    sessions: list[weakref.ref[Session]] = []
    left: list[int] = []

    def fail() -> None:
        left.append(sum(session() is not None for session in sessions))
        session = Session()
        session.error = SourceLost("refused")
        sessions.append(weakref.ref(session))
        raise session.error

    monkeypatch.setattr(house.source, "fail_to_open", fail)
    gc.disable()  # as seldom as full collections are
    try:
        async with house.running():
            await asyncio.sleep(300)
    finally:
        gc.enable()
    assert len(left) > 5
    assert set(left) == {0}


async def test_a_source_that_opens_and_is_lost_at_once_does_not_make_the_runner_spin() -> None:
    house = _House()
    async with house.running():
        for _ in range(1000):
            house.source.lose()
        await asyncio.sleep(3600)
        assert 60 < len(house.source.opens) < 600


async def test_a_source_that_ends_is_opened_again() -> None:
    house = _House()
    async with house.running():
        house.source.put()
        given = deliveries(1)
        house.source.put(*given)
        assert await settled(given, within=10) == [Outcome.ACCEPTED]
    assert len(house.source.opens) == 2


async def test_backoff_begins_anew_once_events_came() -> None:
    house = _House()
    house.source.can_open = lambda: False
    async with house.running():
        await asyncio.sleep(3600)
        house.source.can_open = lambda: True
        given = deliveries(1)
        house.source.put(*given)
        await settled(given)
        opens = len(house.source.opens)
        house.source.lose()
        await asyncio.sleep(0.51)
        assert len(house.source.opens) == opens + 1


async def test_backoff_begins_anew_once_the_source_was_well_though_no_event_came() -> None:
    house = _House()
    house.source.can_open = lambda: False
    async with house.running():
        await asyncio.sleep(3600)
        house.source.can_open = lambda: True
        await asyncio.sleep(70)
        for _ in range(20):
            opens = len(house.source.opens)
            house.source.lose()
            await asyncio.sleep(0.62)
            assert len(house.source.opens) == opens + 1
            await asyncio.sleep(60)


async def test_a_source_lost_while_its_lane_is_full_is_opened_again() -> None:
    """What was released needs no room: the runner comes back to the source and hears that it is lost."""
    house = _House(queue=1, seconds=3600)
    others = deliveries(2, "other")
    given = deliveries(5)
    async with house.running():
        await house.bench.put(others)  # one in its attempt, one filling the queue, from another source
        house.source.put(*given)
        await asyncio.sleep(60)
        assert house.intake.in_flight == 5
        house.source.lose()
        await asyncio.sleep(2)
        assert len(house.source.opens) == 2
        assert house.intake.in_flight == 0
        assert list(house.bench.lane._waiting) == [others[1]]


@pytest.mark.parametrize("lost_on_leaving", [False, True], ids=["in-order", "lost-on-leaving"])
@pytest.mark.parametrize("state", ["opening", "reading", "routing", "no-slot", "pausing"])
async def test_a_cancelled_runner_leaves_its_source_in_order(state: str, lost_on_leaving: bool) -> None:
    house = _House(max_in_flight=2, queue=1, seconds=3600)
    house.source.lost_on_leaving = lost_on_leaving
    given = deliveries(3)
    async with house.running() as runner:
        if state == "opening":
            await asyncio.sleep(0.05)
        elif state == "routing":  # the third finds the lane full
            house.source.put(*given)
        elif state == "no-slot":
            house.source.put(*given[:2])
        elif state == "pausing":
            house.source.can_open = lambda: False
        if state != "opening":
            await asyncio.sleep(60)
        opens = len(house.source.opens)
        opened = state in {"reading", "routing", "no-slot"}
        await stop(runner)
        assert house.source.closes == (1 if opened else 0)
        assert house.up == 0
        await asyncio.sleep(3600)
        assert len(house.source.opens) == opens
    if state == "routing":
        assert given[2].outcome is Outcome.RELEASED


class _Panic(BaseException):
    """As an extension of Rust's raises it (pyo3's PanicException)."""


def _deep() -> None:
    json.loads("[" * 100_000)


def _in_groups() -> None:
    inner = BaseExceptionGroup("tasks", [ValueError("a bug"), asyncio.CancelledError()])
    raise BaseExceptionGroup("more tasks", [inner])


def _panic() -> None:
    raise _Panic("index out of bounds")


def _bug() -> None:
    raise ValueError("a bug with password=hunter2")


DEFECTS = pytest.mark.parametrize(
    ("fail", "told"),
    [
        (_bug, "ValueError: a bug with password=[redacted]"),
        (_deep, "RecursionError: "),
        (_in_groups, "ValueError: a bug"),
        (_panic, "_Panic: index out of bounds"),
    ],
    ids=["an exception", "recursion", "groups", "a panic"],
)


@DEFECTS
async def test_whatever_opening_raises_is_a_source_that_cannot_be_opened(
    fail: Callable[[], None], told: str
) -> None:
    house = _House()
    house.source.fail_to_open = fail
    with capture_logs() as lines:
        async with house.running():
            await asyncio.sleep(600)
            (problem,) = house.runner.problems()
            assert problem.startswith(f"can't be opened: {told}")
            assert len(house.source.opens) > 10
            house.source.fail_to_open = None
            given = deliveries(1)
            house.source.put(*given)
            assert await settled(given, within=60) == [Outcome.ACCEPTED]
            assert house.runner.problems() == [], "the first connecting of all is ready at once"
    lost = [line for line in lines if line["event"] == "source lost"]
    assert ["exc_info" in line for line in lost] == [True] + [False] * (len(lost) - 1)
    assert lost[0]["log_level"] == "error"
    assert house.losses == 0


@DEFECTS
async def test_whatever_reading_raises_is_a_lost_source_and_what_it_forgot_is_given_back(
    fail: Callable[[], None], told: str
) -> None:
    house = _House(seconds=3600)
    forgotten = deliveries(3)
    with capture_logs() as lines:
        async with house.running():
            house.source.put(*forgotten)
            await asyncio.sleep(1)
            house.source.put_failure(fail)
            await asyncio.sleep(0.01)
            (problem,) = house.runner.problems()
            assert problem.startswith(f"lost: {told}")
            assert house.intake.in_flight == 0
            assert [delivery.outcome for delivery in forgotten] == [Outcome.RELEASED] * 3
            await asyncio.sleep(1)
            assert house.up == 1
    assert ["exc_info" in line for line in lines if line["event"] == "source lost"] == [True]
    assert house.losses == 1


async def test_a_source_that_fails_while_it_is_left_at_the_stop_is_told_and_stops() -> None:
    house = _House()
    house.source.fail_to_close = _bug
    with capture_logs() as lines:
        async with house.running() as runner:
            await asyncio.sleep(1)
            await stop(runner)
            assert runner.cancelled()
    (lost,) = [line for line in lines if line["event"] == "source lost"]
    assert isinstance(lost["exc_info"], ValueError)


async def test_a_source_that_fails_to_tell_its_problems_has_one() -> None:
    house = _House()
    async with house.running():
        await asyncio.sleep(1)
        house.source.fail_to_tell = _bug
        assert house.runner.problems() == [
            "can't tell its problems: ValueError: a bug with password=[redacted]"
        ]


async def test_a_lost_source_is_a_problem_until_it_has_been_open_for_half_a_minute() -> None:
    house = _House()
    async with house.running():
        await asyncio.sleep(1)
        assert house.runner.problems() == []
        for _ in range(20):  # it comes and goes
            house.source.lose()
            await asyncio.sleep(20)
            assert house.runner.problems()
        house.source.put(*deliveries(1))
        await asyncio.sleep(35)
        assert house.runner.problems() == []
    assert house.losses == 20
