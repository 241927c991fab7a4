"""`kill -9` at any moment loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from bridge.sandbox.oscar import Fault
from bridge.sandbox.oscar.ledger import Ledger
from tests.promises.world import Daemon, World, until

EVENTS_A_KILL = 60
ENOUGH = 600
"""Events without a job, of which a kill finds some: also the one that comes a second later."""


class Assassin:
    """Kills a daemon at moments of its progress: as a request arrives, as its job is made, or soon after.

    What is hooked is the sandbox's ledger: when it notes a request, nothing was done yet; when it notes
    a job, the job is made and the answer not sent.
    """

    def __init__(self, ledger: Ledger, daemon: Daemon, dice: random.Random) -> None:
        self.kills: list[str] = []
        self._daemon = daemon
        self._dice = dice
        self._armed = asyncio.Event()
        self._struck = asyncio.Event()
        self._countdown = 0
        self._moment = ""
        record: Callable[..., None] = ledger.record

        def recorded(*arguments: Any) -> None:
            record(*arguments)
            self._progress("job made")

        ledger.record = recorded  # type: ignore[method-assign] # the hook
        assassin = self

        class Hooked(type(ledger)):  # type: ignore[misc] # the class of the ledger at hand
            @property
            def requests(self) -> int:
                return int(self.__dict__["requests"])

            @requests.setter
            def requests(self, value: int) -> None:
                self.__dict__["requests"] = value
                assassin._progress("request arrived")

        ledger.__class__ = Hooked

    def arm(self, progress: int) -> None:
        """Strike after `progress` more of one kind of moment."""
        self._moment = self._dice.choice(("request arrived", "job made", "soon after"))
        self._countdown = progress
        self._struck.clear()
        self._armed.set()

    async def struck(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._struck.wait()
        except TimeoutError:
            self._armed.clear()
            return False
        return True

    def _progress(self, moment: str) -> None:
        if not self._armed.is_set() or moment not in (self._moment, "job made"):
            return
        if moment == "job made" and self._moment == "request arrived":
            return
        self._countdown -= 1
        if self._countdown > 0:
            return
        self._armed.clear()
        if self._moment == "soon after":  # among others: between the settling and the commit
            asyncio.get_running_loop().call_later(self._dice.uniform(0, 1.3), self._strike)
        else:
            self._strike()

    def _strike(self) -> None:
        os.kill(self._daemon.pid, 9)
        self.kills.append(self._moment)
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
            poison += await world.produce([b'{"n": "' + b"x" * 140_000 + b'"}'])
        assassin.arm(dice.randint(1, 40))
        assert await assassin.struck(30), "there is work, so there is progress"
        daemon.kill()
        daemon.start()
    await world.all_jobs(seconds=60)
    await daemon.becomes_ready()
    deadline = time.monotonic() + 30
    while await world.committed() < len(world.ids) + len(poison):
        assert time.monotonic() < deadline, "not everything was committed"
        await asyncio.sleep(0.1)
    assert await daemon.stop() == 0
    world.assert_one_job_an_event()
    listed = daemon.command("dead-letters", "list", "--json")
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert sorted(letter["event_id"] for letter in letters) == sorted(poison), listed
    assert {letter["cause"] for letter in letters} == {"too_large"}
    return assassin.kills


@pytest.mark.timeout(240)
async def test_twenty_kills_at_rotating_moments(world: World) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")
    kills = await murder(world, 20, seed)
    assert len(kills) == 20


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills(world: World, seed: int) -> None:
    kills = await murder(world, 50, seed)
    assert len(kills) == 50
    assert set(kills) == {"request arrived", "job made", "soon after"}


async def murder_while_parking(world: World, kills: int, seed: int) -> None:
    """Kill a bridge whose services die and live again, while its dead letters are replayed."""
    dice = random.Random(seed)
    events = kills * EVENTS_A_KILL
    world.oscar.add_service("flood")
    values = [json.dumps({"n": n, "filling": "x" * dice.choice((1, 100))}).encode() for n in range(events)]
    world.ids.update(enumerate(await world.produce(values)))
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(max_in_flight=100)},
            services={
                key: {"retry": {"max_backoff": "200ms"}, "park_after": "200ms", "limits": {"rate": "150/s"}}
                for key in ("plants", "flood")
            },
            routes=[{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
        )
    )
    troubles = (
        Fault(statuses={503: 1.0}),
        Fault(statuses={500: 0.05, 503: 0.05}, lost_answers=0.05),
        Fault(cut=0.5),
        Fault(),
    )
    daemon.start()
    for _ in range(kills):
        for service in ("plants", "flood"):
            world.oscar.faults.set(dice.choice(troubles), service=service)
        # An ingress with a limit turns those with a filling into dead letters, for the replays.
        world.oscar.settings.max_body_bytes = dice.choice((60, None, None))
        await until(lambda: daemon.said("bridge started"), what="it runs")
        if dice.random() < 0.5:
            command = asyncio.create_task(
                asyncio.to_thread(daemon.command, "dead-letters", "replay", "--all")
            )
        else:
            command = None
        await asyncio.sleep(dice.uniform(0.5, 2.5))  # any moment will do: that is the point
        daemon.kill()
        daemon.log.rename(daemon.log.with_suffix(f".{time.monotonic_ns()}"))
        if command is not None:
            await command
        daemon.start()
    world.oscar.faults.clear()
    world.oscar.settings.max_body_bytes = None
    deadline = time.monotonic() + 60 + events / 100
    while True:
        await asyncio.to_thread(daemon.command, "dead-letters", "replay", "--all")
        made = world.oscar.ledger.created
        missing = [n for n in world.ids for key in ("plants", "flood") if world.job_of(n, key) not in made]
        if not missing:
            break
        assert time.monotonic() < deadline, f"{len(missing)} events have no job: {missing[:10]}"
        await asyncio.sleep(0.3)
    await world.all_settled()
    while any(
        [
            await daemon.metric("bridge_kept_events", service=key, reason="parked")
            for key in ("plants", "flood")
        ]
    ):
        assert time.monotonic() < deadline, "the store was not emptied"
        await asyncio.sleep(0.1)
    assert await daemon.stop() == 0
    for service in ("plants", "flood"):
        world.assert_one_job_an_event(service)
    assert daemon.command("dead-letters", "list").stdout == "no dead letters\n"


@pytest.mark.timeout(240)
async def test_ten_kills_while_events_are_parked_and_replayed(world: World) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")
    await murder_while_parking(world, 10, seed)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills_while_events_are_parked_and_replayed(world: World, seed: int) -> None:
    await murder_while_parking(world, 50, seed)
