"""Waiting for what happens, with an end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable


async def until(
    condition: Callable[[], object], seconds: float = 60.0, *, what: str = "", step: float = 0.01
) -> None:
    """Return once `condition()` holds, asked each `step` seconds; what it returns is awaited if it can be.

    Raises AssertionError, which says `what`, when it has not held for so many `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                held = condition()
                if inspect.isawaitable(held):
                    held = await held
                if held:
                    return
                await asyncio.sleep(step)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what or 'the condition'}") from None
