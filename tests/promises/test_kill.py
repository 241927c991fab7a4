"""`kill -9` at any moment loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from bridge.sandbox.oscar import Fault
from bridge.sandbox.oscar.ledger import Ledger
from bridge.testing import Proxy, until
from tests.support.daemon import Daemon
from tests.support.world import World

ENOUGH = 600
"""Events without a job, of which a kill finds some: also the one that comes a second later."""


class Assassin:
    """Kills a daemon at moments of its progress: a request arrives, its job is made, the store is written …

    What is hooked is the sandbox's ledger: when it notes a request, nothing was done yet; when it notes
    a job, the job is made and the answer not sent. Of the store its log's file is watched.
    """

    def __init__(self, ledger: Ledger, daemon: Daemon, dice: random.Random) -> None:
        self.kills: list[str] = []
        self._daemon = daemon
        self._dice = dice
        self._struck = asyncio.Event()
        self._seen = 0
        """Moments of any kind since it was armed."""
        self._countdown = 0
        self._moment: str | None = None
        self._later: asyncio.TimerHandle | None = None
        record: Callable[..., None] = ledger.record

        def recorded(*arguments: Any) -> None:
            record(*arguments)
            self.progress("job made")

        setattr(ledger, "record", recorded)  # noqa: B010 - the hook
        assassin = self

        class Hooked(type(ledger)):  # type: ignore[misc] # the class of the ledger at hand
            @property
            def requests(self) -> int:
                return int(self.__dict__["requests"])

            @requests.setter
            def requests(self, value: int) -> None:
                self.__dict__["requests"] = value
                assassin.progress("request arrived")

        ledger.__class__ = Hooked

    def arm(self, moment: str, progress: int) -> None:
        """Strike after `progress` more of one kind of moment; "soon after" is after that many jobs."""
        self._moment = moment
        self._seen = 0
        self._countdown = progress
        self._struck.clear()

    async def struck(self, seconds: float) -> bool:
        """Wait until it has struck; False, and disarmed, when it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                if self._moment == "store written":
                    await self._watch_the_store()
                await self._struck.wait()
        except TimeoutError:
            if self._struck.is_set():  # in that very moment
                return True
            self._moment = None
            if self._later is not None:
                self._later.cancel()
            return False
        return True

    async def struck_or_at_rest(self) -> bool:
        """Wait until it has struck; False, and disarmed, when nothing of that kind goes on in such trouble.

        That is so when much of another kind has come, or nothing more for three seconds. On a busy machine
        the daemon starts late, and all of it comes late.
        """
        moment = self._moment
        for _ in range(10):
            before = self._seen
            self._moment = moment
            if await self.struck(3):
                return True
            if self._seen >= 15 or self._seen == before > 0:
                break
        return False

    async def _watch_the_store(self) -> None:
        wal = self._daemon.store.with_name(f"{self._daemon.store.name}-wal")
        last: object = None
        while self._moment is not None:
            with suppress(OSError):  # it is not there yet
                seen = wal.stat()
                now = (seen.st_size, seen.st_mtime_ns)
                if last not in (None, now):
                    self.progress("store written")
                last = now
            await asyncio.sleep(0.002)

    def progress(self, moment: str) -> None:
        """A moment of that kind has come."""
        self._seen += 1
        soon = self._moment == "soon after"
        if moment != ("job made" if soon else self._moment):
            return
        self._countdown -= 1
        if self._countdown > 0:
            return
        kind, self._moment = moment, None
        if soon:  # among others: between the settling and the commit
            loop, seconds = asyncio.get_running_loop(), self._dice.uniform(0, 1.3)
            self._later = loop.call_later(seconds, self._strike, "soon after")
        else:
            self._strike(kind)

    def _strike(self, moment: str) -> None:
        os.kill(self._daemon.pid, 9)
        self.kills.append(moment)
        self._struck.set()


async def murder(world: World, kills: int, seed: int) -> list[str]:
    """Kill one daemon `kills` times while it works through a faulty day; then let it finish."""
    dice = random.Random(seed)
    world.oscar.settings.seed = seed
    world.oscar.faults.set(Fault(statuses={500: 0.05, 503: 0.05}, lost_answers=0.05))
    poison: list[str] = []
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(max_in_flight=100)},
            services={
                "plants": {"retry": {"max_backoff": "200ms"}, "limits": {"concurrency": 8, "rate": "400/s"}}
            },
        )
    )
    assassin = Assassin(world.oscar.ledger, daemon, dice)
    daemon.start()
    for _ in range(kills):
        if len(world.ids) - len(world.oscar.ledger.created) < ENOUGH:
            await world.produce_numbers(ENOUGH)
            # Dead letters, for the kills between a row in the store and its commit.
            poison += await world.bed.produce([b'{"n": "' + b"x" * 140_000 + b'"}'])
        assassin.arm(dice.choice(("request arrived", "job made", "soon after")), dice.randint(1, 40))
        assert await assassin.struck(30), "there is work, so there is progress"
        daemon.kill()
        daemon.start()
    await world.all_jobs(seconds=60)
    await daemon.becomes_ready()
    deadline = time.monotonic() + 60
    while await world.bed.committed() < len(world.ids) + len(poison):
        assert time.monotonic() < deadline, "not everything was committed"
        await asyncio.sleep(0.1)
    assert await daemon.stop() == 0
    world.assert_one_job_an_event()
    listed = daemon.command("dead-letters", "list", "--json")
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert sorted(letter["event_id"] for letter in letters) == sorted(poison), listed
    assert {letter["cause"] for letter in letters} == {"too_large"}
    return assassin.kills


def seed_of_the_day() -> int:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")
    return seed


@pytest.mark.timeout(240)
async def test_ten_kills_at_rotating_moments(world: World) -> None:
    assert len(await murder(world, 10, seed_of_the_day())) == 10


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills(world: World, seed: int) -> None:
    kills = await murder(world, 50, seed)
    assert len(kills) == 50
    assert set(kills) == {"request arrived", "job made", "soon after"}


TROUBLES = (
    Fault(statuses={503: 1.0}),
    Fault(statuses={500: 0.05, 503: 0.05}, lost_answers=0.05),
    Fault(cut=0.5),
    Fault(),
)
MOMENTS = ("request arrived", "job made", "soon after", "store written")
DELETING = b"X-Amz-Target: AmazonSQS.DeleteMessageBatch"
TOO_LARGE = 60
"""Bytes that an ingress takes in the first act: every fifth event is larger."""


class Murder:
    """A bridge between a world and two services, killed at every step of what it does with an event.

    First act: `flood` is missing, the ingress has a limit, and `plants` has a bad time of one kind or
    another. So what is for `flood` is parked, what is large is a dead letter of `plants`, and the rest
    its jobs; commands replay the dead letters, which die again. Second act: all that heals, in turns;
    the parked come back and the dead are replayed.
    """

    def __init__(self, world: World, seed: int, at_a_time: int, source: dict[str, Any]) -> None:
        self.dice = random.Random(seed)
        world.oscar.settings.seed = seed
        self._world = world
        self._at_a_time = at_a_time
        self._large: set[int] = set()
        quick = {"retry": {"max_backoff": "200ms"}, "park_after": "200ms", "queue": at_a_time // 2}
        self.daemon = world.daemon(
            world.configuration(
                sources={"uploads": world.source(max_in_flight=at_a_time, **source)},
                services={"plants": quick, "flood": quick},
                routes=[{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
            )
        )
        self.assassin = Assassin(world.oscar.ledger, self.daemon, self.dice)

    async def first_act(self, kills: int, moments: Sequence[str]) -> None:
        self._world.oscar.settings.max_body_bytes = TOO_LARGE
        self.daemon.start()
        for _ in range(kills):
            await self._kill(moments, replays=0.3)
        self._world.oscar.faults.clear()
        await self._world.bed.leaves(0, seconds=60)
        numbers = set(self._world.ids)
        await self._until(
            lambda: (
                Counter((row.service, row.reason) for row in self.daemon.kept())
                == Counter({("flood", "parked"): len(numbers), ("plants", "dead"): len(self._large)})
            )
        )
        await self.daemon.is_up()
        assert await self.daemon.stop() == 0
        self._exactly_one(jobs=numbers - self._large, dead=self._large, parked=numbers)

    async def second_act(self, kills: int, moments: Sequence[str]) -> None:
        world, settings = self._world, self._world.oscar.settings
        world.oscar.add_service("flood")
        self.daemon.start()
        for _ in range(kills):
            settings.max_body_bytes = self.dice.choice((TOO_LARGE, None, None))
            world.oscar.faults.set(self.dice.choice(TROUBLES), service="flood")
            await self._kill(moments, replays=0.6)
        world.oscar.faults.clear()
        settings.max_body_bytes = None
        await self.daemon.is_up()  # before that a command would take the store, and the daemon end of it
        await world.bed.leaves(0, seconds=60)
        deadline = time.monotonic() + 60
        while self.daemon.kept():
            assert time.monotonic() < deadline, self.daemon.kept()
            await self._replay()
        await self.daemon.becomes_ready()
        assert await self.daemon.stop() == 0
        for service in ("plants", "flood"):
            world.assert_one_job_an_event(service)
        assert not self.daemon.kept()

    async def _kill(self, moments: Sequence[str], *, replays: float) -> None:
        await self._produce()
        self._world.oscar.faults.set(self.dice.choice(TROUBLES), service="plants")
        command = asyncio.create_task(self._replay()) if self.dice.random() < replays else None
        moment = self.dice.choice(moments)
        self.assassin.arm(moment, self.dice.randint(1, 2 if moment == "deleting" else 8))
        if not await self.assassin.struck_or_at_rest():
            self.assassin.kills.append("at rest")
        self.daemon.kill()
        self.daemon.start()
        if command is not None:
            await command

    async def _replay(self) -> None:
        await asyncio.to_thread(self.daemon.command, "dead-letters", "replay", "--all")

    async def _produce(self) -> None:
        first = len(self._world.ids)
        numbers = range(first, first + self._at_a_time)
        large = {n for n in numbers if n % 5 == 0}
        values = [json.dumps({"n": n} | ({"filling": "x" * 100} if n in large else {})) for n in numbers]
        ids = await self._world.bed.produce([value.encode() for value in values])
        self._world.ids.update(zip(numbers, ids, strict=True))
        self._large |= large

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            await until(condition, seconds=60)
        except AssertionError:
            kept = Counter((row.service, row.reason) for row in self.daemon.kept())
            raise AssertionError(f"kept {kept} of {len(self._world.ids)}, {len(self._large)} large") from None

    def _exactly_one(self, *, jobs: set[int], dead: set[int], parked: set[int]) -> None:
        """The ledger: an event is for each service one of a job, a dead letter, and parked."""
        world = self._world
        world.assert_one_job_an_event("plants", sorted(jobs))
        assert not world.numbers("flood")
        kept = Counter((row.service, row.reason, row.id) for row in self.daemon.kept())
        expected = Counter(("plants", "dead", world.ids[n]) for n in dead)
        expected.update(("flood", "parked", world.ids[n]) for n in parked)
        assert kept == expected


async def murder_between_topic_and_jobs(world: World, kills: int, seed: int) -> list[str]:
    murder = Murder(world, seed, at_a_time=60, source={})
    await murder.first_act(kills - kills // 2, MOMENTS)
    await murder.second_act(kills // 2, MOMENTS)
    return murder.assassin.kills


async def murder_between_queue_and_jobs(world: World, kills: int, seed: int) -> list[str]:
    """The queue is behind a proxy, which sees the deletes; some of them it lets pass."""
    async with Proxy(world.bed.queue.moto.port) as proxy:
        source = {"endpoint_url": f"http://127.0.0.1:{proxy.port}"}
        murder = Murder(world, seed, at_a_time=12, source=source)

        def asked(data: bytes) -> bool:
            if DELETING not in data:
                return True
            before = len(murder.assassin.kills)
            murder.assassin.progress("deleting")
            return len(murder.assassin.kills) == before or murder.dice.random() < 0.5

        proxy.asked = asked
        moments = (*MOMENTS, "deleting", "deleting")
        await murder.first_act(kills - kills // 2, moments)
        await murder.second_act(kills // 2, moments)
    return murder.assassin.kills


@pytest.mark.timeout(240)
async def test_a_kill_while_events_of_a_queue_are_parked_and_replayed(queue_world: World) -> None:
    assert len(await murder_between_queue_and_jobs(queue_world, 1, seed_of_the_day())) == 1


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills_while_events_of_a_topic_are_parked_and_replayed(
    world: World, seed: int
) -> None:
    kills = await murder_between_topic_and_jobs(world, 50, seed)
    print(Counter(kills))
    assert len(kills) == 50
    assert set(kills) >= set(MOMENTS)


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills_while_events_of_a_queue_are_parked_and_replayed(
    queue_world: World, seed: int
) -> None:
    kills = await murder_between_queue_and_jobs(queue_world, 50, seed)
    print(Counter(kills))
    assert len(kills) == 50
    assert set(kills) >= {*MOMENTS, "deleting"}
