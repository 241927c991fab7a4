"""What an attempt at a connection leaves behind."""

from __future__ import annotations

import asyncio
import gc


async def free_leftovers() -> None:
    """Free what a connection that came to nothing left in reference cycles, held by its errors.

    That may be a megabyte of certificate authorities each time. It is young still, and full collections are
    seldom. The caller must hold none of the errors any more, and the loop itself does until its next turn.
    """
    await asyncio.sleep(0)
    gc.collect(1)
