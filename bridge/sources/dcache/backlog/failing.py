"""Occurrences that can't be looked up: readiness shows it, and where many fail, some are laid aside."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from bridge.core.ports import Spool
from bridge.core.steady import Steady
from bridge.sources.dcache.backlog.asking import answered
from bridge.sources.dcache.backlog.hand import Hand

MOST = 1000
"""Occurrences that fail by themselves and are looked up again soon. More are laid aside in the store, so that
none of the others waits for them."""
ROUND_SECONDS = 10.0
"""Least pause after some of those laid aside were taken up: the time to look them up."""
LONGEST_ROUND_SECONDS = 300.0
"""Longest such pause, while more than half of `MOST` fail."""


class FailingLookups:
    """Knows the numbers of the occurrences that can't be looked up; `run` notes them in the store."""

    def __init__(self, spool: Spool, hand: Hand, log: Any) -> None:
        self._spool = spool
        self._hand = hand
        self._log = log
        self._trouble = Steady()
        self._known: set[int] = set()
        self._by_themselves: set[int] = set()
        """Those of them that fail by themselves, while others may be looked up well."""
        self._few = asyncio.Event()
        """No more than half of `MOST` do."""
        self._few.set()
        self._tried: list[int] = []
        """Occurrences whose first look-up has failed, and of which the time of that is to be kept."""
        self._leaving: list[int] = []
        """Occurrences that are being laid aside."""
        self._has_work = asyncio.Event()
        self._are_aside = asyncio.Event()
        """There may be some that are laid aside: a process before this one may have done it."""
        self._are_aside.set()

    @property
    def leaving(self) -> int:
        """How many are being laid aside."""
        return len(self._leaving)

    @property
    def problem(self) -> str | None:
        """Why look-ups fail, or did a moment ago."""
        return self._trouble.problem

    def failed(self, number: int, trouble: str, *, by_itself: bool, is_first: bool) -> bool:
        """Note that `number` can't be looked up; return whether it is being laid aside."""
        self._trouble.failed(f"look-ups fail: {trouble}")
        self._known.add(number)
        if is_first:
            self._tried.append(number)
            self._has_work.set()
        if not by_itself:
            return False
        if number not in self._by_themselves and len(self._by_themselves) >= MOST:
            self.lay_aside(number)
            return True
        self._by_themselves.add(number)
        if len(self._by_themselves) > MOST // 2:
            self._few.clear()
        return False

    def lay_aside(self, number: int) -> None:
        """Leave `number` to the store, to be taken up later."""
        self._leaving.append(number)
        self._has_work.set()

    def ended(self, number: int) -> None:
        """Note that `number` has been looked up, or waits for something else."""
        self._known.discard(number)
        self._by_themselves.discard(number)
        if len(self._by_themselves) <= MOST // 2:
            self._few.set()
        self._recover_if_over()

    def _recover_if_over(self) -> None:
        if not self._known and not self._are_aside.is_set():
            self._trouble.recovered()

    async def run(self) -> None:
        """Lay occurrences aside and take them up again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._take_up())

    async def _write(self) -> None:
        """Write when the first look-up of an occurrence failed, and which occurrences are laid aside."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            tried, self._tried = self._tried, []
            aside = list(self._leaving)
            await answered(partial(self._spool.tried, tried, aside=aside), self._log)
            del self._leaving[: len(aside)]
            for number in aside:
                self._known.discard(number)
                self._hand.give_back(number)
            if aside:
                self._are_aside.set()

    async def _take_up(self) -> None:
        """Take up some of those laid aside from time to time; soon again while few fail."""
        after = 0
        while True:
            await self._are_aside.wait()
            last = await answered(partial(self._spool.take_up, after, MOST), self._log)
            if last is None and after:
                after = 0  # Begin again with the first.
                continue
            if last is None and not self._leaving:
                self._are_aside.clear()
                self._recover_if_over()
                continue
            if last is not None:
                after = last
                self._hand.wake()
            await asyncio.sleep(ROUND_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_ROUND_SECONDS):
                    await self._few.wait()
