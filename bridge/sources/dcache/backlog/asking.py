"""The store is asked until it answers, and is given what it may have room for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from bridge.core.errors import StoreError
from bridge.core.ports import Spooled

T = TypeVar("T")

STORE_PAUSES = (0.5, 30.0)
"""Seconds before a store that could not be read is asked again: the first pause, the longest."""
PORTION, PORTION_BYTES = 100, 64 * 2**10
"""Occurrences, and bytes of their data, that are appended at once. A store that is nearly full would refuse a
bigger batch as a whole, though it has room for a part of it."""


async def answered(question: Callable[[], Awaitable[T]], log: Any) -> T:
    """Ask the store until it answers. The store itself shows in readiness what is wrong with it."""
    pause, longest = STORE_PAUSES
    while True:
        try:
            return await question()
        except StoreError as error:
            log.warning("what is spooled can't be read", reason=str(error), again_in_seconds=pause)
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, longest)


def portions_of(occurrences: Sequence[Spooled]) -> Iterator[Sequence[Spooled]]:
    """Part `occurrences` into what is appended at once; at least one part, perhaps empty."""
    portion: list[Spooled] = []
    size = 0
    for each in occurrences:
        if portion and (len(portion) == PORTION or size + len(each.data) > PORTION_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(each)
        size += len(each.data)
    yield portion
