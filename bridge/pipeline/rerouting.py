"""Dead letters whose routes could not choose a service, on their way round them again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.core.ports import NO_LANE, DeadLetter, Keeper, Parked
from bridge.pipeline.dead import bury
from bridge.pipeline.retry import STORE_BACKOFF
from bridge.pipeline.router import Router

_TOGETHER = 100
"""Events on their way at once."""
_BYTES = 16 * 2**20
"""More are taken while those on their way are below it."""

_log = structlog.get_logger(__name__)


class Rerouting:
    """Puts what a replay has parked for `NO_LANE` through the routes of its source, as if it came anew.

    Meanwhile an event is in the store and on its way at once: it leaves the store when it is settled, so a
    crash in between sends it round again, and the jobs it made by then are made once.
    """

    def __init__(self, routers: Mapping[str, Router], keeper: Keeper, journal: Journal = NO_JOURNAL) -> None:
        """Take the routes of each source by the source's identity."""
        self._routers = routers
        self._keeper = keeper
        self._journal = journal
        self._under_way: dict[Delivery, int] = {}
        self._look = asyncio.Event()
        self._look.set()  # for what was marked while no bridge ran
        keeper.on_parked(NO_LANE, self._look.set)

    async def run(self) -> None:
        """Route them until cancelled. What is then unsettled stays in the store."""
        failures = 0
        while True:
            await self._look.wait()
            self._look.clear()
            room = _TOGETHER - len(self._under_way)
            if room <= 0 or sum(each.event.size for each in self._under_way) >= _BYTES:
                continue
            try:
                rows = await self._keeper.parked(NO_LANE, without=self._under_way.values(), limit=room)
            except StoreError as error:
                failures += 1
                _log.error("dead letters can't be routed again", error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                self._look.set()
                continue
            failures = 0
            for row in rows:
                await self._route(row)
            if rows:
                self._look.set()

    async def _route(self, row: Parked) -> None:
        delivery = Delivery(row.event, self._settled)
        self._under_way[delivery] = row.number
        router = self._routers.get(row.event.source)
        if router is not None:
            await router.route(delivery)
            return
        gone = "its source is not in the configuration any more"
        letter = DeadLetter(event=row.event, service=NO_LANE, cause="route", detail=gone)
        await bury(self._keeper, self._journal, delivery, letter)

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        number = self._under_way.pop(delivery)
        if outcome is not Outcome.RELEASED:
            self._keeper.forget(number)  # unless it is a dead letter again: then there is none to forget
        self._look.set()
