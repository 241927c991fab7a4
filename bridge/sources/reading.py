"""What every source does around its reader: let it run, and tell the runner what ended it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

from bridge.core.errors import SourceLost, reason, root_cause
from bridge.sources.handover import Handover


class Reader(Protocol):
    """One opening of an upstream."""

    @property
    def batches(self) -> Handover:
        """What the runner iterates."""

    async def run(self) -> None:
        """Read until cancelled, or until the upstream is lost: then tell the runner by `batches`."""


@asynccontextmanager
async def reading(
    reader: Reader, name: str, beginning: Coroutine[Any, Any, object] | None = None
) -> AsyncIterator[Handover]:
    """Let `reader` run for the time of this context, and give what it hands over once `beginning` is done.

    Raises what `beginning` raises, and SourceLost where `reader` is lost before that.
    """
    # Not a TaskGroup: it would wrap what the runner raises through this context into a group.
    running = asyncio.create_task(reader.run(), name=name)
    reader.batches.rests_on(running)
    try:
        if beginning is not None:
            await reader.batches.begun(beginning)
        yield reader.batches
    finally:
        running.cancel()
        await asyncio.wait([running])


@asynccontextmanager
async def lost_with(
    batches: Handover,
    defect: str,
    log: Any,
    *,
    release: Callable[[], None],
    expected: tuple[type[Exception], ...] = (),
    explain: Callable[[BaseException], str] = reason,
) -> AsyncIterator[asyncio.TaskGroup]:
    """Give a group for a reader's tasks, and return when one of them has failed, which ends them all.

    What is in hand is given back by `release`, and then the runner is told by `batches`. An error that is
    none of `expected` is logged with its traceback, as `defect`.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except* Exception as group:  # whatever it was, the runner must hear of it
        error = root_cause(group)
        if not isinstance(error, (SourceLost, *expected)):
            log.exception(defect, exc_info=error)
        release()
        batches.fail(error if isinstance(error, SourceLost) else SourceLost(explain(error)))
