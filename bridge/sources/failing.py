"""What is spooled and can't be looked up: told, and laid aside where much of it fails by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from bridge.core.ports import Spool
from bridge.core.steady import Steady

MOST = 1000
"""Occurrences of which each fails by itself, to be looked up again soon. More are laid aside in the store:
none of the others waits for them."""
ROUND_SECONDS = 10.0
"""Between two times that some of those laid aside are taken up, at least: time to look them up."""
LONGEST_ROUND_SECONDS = 300.0
"""Likewise, while half of `MOST` fail."""


class Failing:
    """Knows which occurrences can't be looked up, by their numbers; `run` keeps it in the store."""

    def __init__(
        self,
        spool: Spool,
        *,
        ask: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
        laid_aside: Callable[[int], None],
        look: Callable[[], None],
    ) -> None:
        """Serve `spool`, which `ask` asks until it answers.

        `laid_aside` hears of each that is, once that is on disk; `look` is called when some were taken up.
        """
        self._laid_aside = laid_aside
        self._spool = spool
        self._ask = ask
        self._look = look
        self._trouble = Steady()
        self._known: set[int] = set()
        self._by_themselves: set[int] = set()
        """Those of them that fail by themselves."""
        self._few = asyncio.Event()
        """No more than half of `MOST` do."""
        self._few.set()
        self._tried: list[int] = []
        """Whose first look-up has failed, which is to be kept."""
        self._leaving: list[int] = []
        self._some_to_write = asyncio.Event()
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
            self._some_to_write.set()
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
        self._some_to_write.set()

    def ended(self, number: int) -> None:
        """Note that `number` has been looked up, or waits for something else."""
        self._known.discard(number)
        self._by_themselves.discard(number)
        if len(self._by_themselves) <= MOST // 2:
            self._few.set()
        self._tell_if_over()

    def _tell_if_over(self) -> None:
        if not self._known and not self._are_aside.is_set():
            self._trouble.recovered()

    async def run(self) -> None:
        """Keep it in the store until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._take_up())

    async def _write(self) -> None:
        """Write whose look-up failed first when, and which of them are laid aside."""
        while True:
            await self._some_to_write.wait()
            self._some_to_write.clear()
            tried, self._tried = self._tried, []
            aside = list(self._leaving)
            await self._ask(partial(self._spool.tried, tried, aside=aside))
            del self._leaving[: len(aside)]
            for number in aside:
                self._known.discard(number)
                self._laid_aside(number)
            if aside:
                self._are_aside.set()

    async def _take_up(self) -> None:
        """Take up some of those laid aside from time to time; soon again while few fail."""
        after = 0
        while True:
            await self._are_aside.wait()
            last = await self._ask(partial(self._spool.take_up, after, MOST))
            if last is None and after:
                after = 0  # once more from the first
                continue
            if last is None and not self._leaving:
                self._are_aside.clear()
                self._tell_if_over()
                continue
            if last is not None:
                after = last
                self._look()
            await asyncio.sleep(ROUND_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_ROUND_SECONDS):
                    await self._few.wait()
