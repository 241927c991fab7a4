"""One opening of the brokers: a subscription at each address, one hand-over for all of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bridge.core.backoff import Backoff
from bridge.core.errors import SourceLost
from bridge.core.leftovers import free_leftovers
from bridge.core.ports import Slots
from bridge.core.steady import Steady
from bridge.sources.broker.config import BrokerConfig
from bridge.sources.broker.link import Link, LinkLost, Opener, Place, explain, resolve
from bridge.sources.broker.message import Read
from bridge.sources.broker.subscription import Full, Subscription
from bridge.sources.handover import Handover
from bridge.sources.opening import Opening
from bridge.sources.reading import lost_with
from bridge.sources.storage_events import Open
from bridge.telemetry.metrics import SourceMetrics

RESOLVE_SECONDS = 60.0
"""How often a broker's name is looked up again."""
LONGEST_PAUSE = 10.0
"""Between two attempts at one address."""
WATCH_SECONDS = 15.0
"""Between two looks at how much waits."""
STEADY_SECONDS = 30.0
"""A link that held for so long starts the pauses anew."""


class Reader:
    """Keeps a link to each address, from `run` to its end; the runner iterates `batches`."""

    def __init__(
        self,
        config: BrokerConfig,
        open_link: Opener,
        *,
        read: Read,
        how: Open,
        slots: Slots,
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        self.batches = Handover()
        self._config = config
        self._open_link = open_link
        self._read = read
        self._slots = slots
        self._metrics = metrics
        self._log = log

        self._addresses: dict[str, list[Place]] = {}
        """What is behind each broker, as last looked up."""
        self._links: dict[Place, asyncio.Task[None]] = {}
        self._up: dict[Place, Link] = {}
        self._down: dict[str, Steady] = {}
        """What can't be reached, or could not be until a moment ago: names and addresses."""
        self._changed = asyncio.Event()
        """Some link came about, or an attempt at one failed."""
        self._opening = Opening(how, self.batches.offer, metrics, log)
        self._message_bytes = 1
        """Of a message, for the prefetch: twice what they had on average where they were too many."""

    def problems(self) -> Sequence[str]:
        """Tell what is not read now, or was not until a moment ago."""
        told = ((what, steady.problem) for what, steady in self._down.items())
        return [f"{what}: {problem}" for what, problem in told if problem is not None]

    async def opened(self) -> None:
        """Return once one address is read; without end when `run` ends before.

        Raises SourceLost when every attempt has failed.
        """
        while not self._up:
            await self._changed.wait()
            self._changed.clear()
            unknown = {broker for broker in self._config.brokers if broker not in self._addresses}
            if not self._up and unknown.union(map(str, self._links)) <= self._down.keys():
                raise SourceLost("; ".join(self.problems()))

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            async with lost_with(
                self.batches,
                "the reader of brokers failed",
                self._log,
                release=self._release_all,
                explain=explain,
            ) as tasks:
                tasks.create_task(self._opening.run())
                tasks.create_task(self.batches.feed(self._slots))
                tasks.create_task(self._watch())
                for broker in dict.fromkeys(self._config.brokers):
                    tasks.create_task(self._look_up(broker, tasks))
        finally:
            self._release_all()

    async def _look_up(self, broker: str, tasks: asyncio.TaskGroup) -> None:
        """Keep a link to each address behind `broker`. One that has gone is read until it is lost."""
        failures = 0
        while True:
            try:
                places = await resolve(broker)
            except LinkLost as failure:
                failures += 1
                self._tell(broker, str(failure))
            else:
                failures = 0
                self._recovered(broker)
                self._addresses[broker] = places
                for place in places:
                    if place not in self._links:
                        self._links[place] = tasks.create_task(
                            self._keep(place), name=f"{self._config.type} {place}"
                        )
            self._changed.set()
            await asyncio.sleep(_pause(failures) if failures else RESOLVE_SECONDS * random.uniform(0.9, 1.1))

    async def _keep(self, place: Place) -> None:
        """Read one address, again and again, as long as its name leads there."""
        failures = 0
        try:
            while place in self._addresses[place.broker]:
                begun = time.monotonic()
                try:
                    await self._read_at(place)
                except LinkLost as lost:
                    _end_if_cancelled()
                    failures = 1 if time.monotonic() - begun > STEADY_SECONDS else failures + 1
                    self._tell(str(place), str(lost))
                self._changed.set()
                await free_leftovers()
                await asyncio.sleep(_pause(failures))
        finally:
            self._links.pop(place, None)
            self._down.pop(str(place), None)

    async def _read_at(self, place: Place) -> None:
        subscription = Subscription(
            self._read,
            self._opening.take,
            most_bytes=self._config.max_in_flight_bytes // self._sharers(),
            metrics=self._metrics,
            log=self._log,
        )
        try:
            async with self._open_link(place, self._prefetch(), subscription.take) as link:
                _end_if_cancelled()
                self._up[place] = link
                self._recovered(str(place))
                self._metrics.up.set(1)
                self._changed.set()
                self._log.info(f"{self._config.type}: reading", broker=str(place), what=self._config.what)
                await subscription.run(link)
        except Full as full:
            self._message_bytes = max(self._message_bytes, 2 * full.mean)
            raise
        except LinkLost:
            if self._up.keys() == {place}:
                self._metrics.losses.inc()
            raise
        finally:
            subscription.release()
            self.batches.drop_settled()
            self._up.pop(place, None)
            if not self._up:
                self._metrics.up.set(0)

    def _prefetch(self) -> int:
        """Give a link's share of the slots."""
        config = self._config
        slots = min(config.max_in_flight, config.max_in_flight_bytes // self._message_bytes)
        return max(1, slots // self._sharers())

    def _sharers(self) -> int:
        """Count the links there are to be; a broker not looked up yet is one."""
        return sum(len(self._addresses.get(broker, "?")) for broker in set(self._config.brokers))

    def _tell(self, what: str, reason: str) -> None:
        steady = self._down.setdefault(what, Steady())
        if steady.problem != reason:
            self._log.warning(f"{self._config.type}: not reading", broker=what, reason=reason)
        steady.failed(reason)

    def _recovered(self, what: str) -> None:
        if (steady := self._down.get(what)) is not None:
            steady.recovered()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            told = []
            for link in list(self._up.values()):
                with suppress(LinkLost):
                    told.append(await link.waiting())
            known = [waiting for waiting in told if waiting is not None]
            self._metrics.lag(sum(known) if known else None)

    def _release_all(self) -> None:
        """Hand over nothing more; what each link held has been given back at its end."""
        self.batches.withdraw()
        self._metrics.lag(None)


def _end_if_cancelled() -> None:
    """Raise CancelledError where this task is to end.

    A client library that is cancelled while its connection ends may raise the reason of that end instead, or
    return. Taken for the loss of one link, that had us read on, and the daemon waited for us without end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _pause(failures: int) -> float:
    return Backoff(first=1.0, longest=LONGEST_PAUSE).seconds(failures)
