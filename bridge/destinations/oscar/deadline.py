"""One timer for all attempts at a service."""

from __future__ import annotations

import asyncio


class Deadline:
    """Ends what takes longer than `seconds`, as `asyncio.timeout` does, with one timer for all tasks.

    A timer for each attempt costs a tenth of the attempt. All have the same time, so they end in the order in
    which they began, and one timer for the oldest is enough.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline is for a task")
        self._ends[task] = end = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(end, self._ring, loop)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Raise TimeoutError where the time ran out; a cancellation from elsewhere goes its way."""
        task = asyncio.current_task()
        if task is None:
            return
        self._ends.pop(task, None)
        if self._late and task in self._late:
            self._late.discard(task)
            if task.uncancel() == 0 and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for task, end in list(self._ends.items()):
            if end > now:
                self._timer = loop.call_at(end, self._ring, loop)
                return
            del self._ends[task]
            self._late.add(task)
            task.cancel()
