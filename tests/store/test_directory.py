"""Files of the state directory that are written anew."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from bridge.store.directory import whole


async def test_a_write_that_is_cancelled_has_ended_before_the_next_begins(tmp_path: Path) -> None:
    free, writing, written = threading.Event(), asyncio.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def write(_directory: Path, what: str) -> None:
        loop.call_soon_threadsafe(writing.set)
        free.wait(10)
        written.append(what)

    task = asyncio.create_task(whole(write, tmp_path, "first"))
    await writing.wait()
    for _ in range(2):  # however often
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    free.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await whole(write, tmp_path, "second")
    assert written == ["first", "second"]
