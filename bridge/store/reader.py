"""The one thread that reads the store's file beside the one that writes it.

SQLite's write-ahead log keeps them out of each other's way.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TypeVar

import bridge.store.salvage as salvage
import bridge.store.schema as schema
from bridge.core.errors import StoreError

_T = TypeVar("_T")


class Reader:
    """Asks the file one question after another."""

    def __init__(self, path: Path) -> None:
        self.trouble: str | None = None
        """Why the last question had no answer."""
        self.reading_since: float | None = None
        """Monotonic time at which the question under way was asked."""
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "store reading")
        self._connection: sqlite3.Connection | None = None

    async def ask(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        """Have the thread ask the file, and return the answer. Raise StoreError."""
        return await self._loop.run_in_executor(self._thread, self._answer, question)

    def stop(self) -> asyncio.Future[None]:
        """Take no more questions; return what is done once the one under way is answered."""
        stopped = self._loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)
        return stopped

    def _answer(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        self.reading_since = monotonic()
        try:
            if self._connection is None:
                self._connection = schema.connect(self._path, mode="rw")
                self._connection.execute("PRAGMA query_only = ON")
            found = question(self._connection)
        except (sqlite3.Error, schema.BrokenRowError) as error:
            self._close()
            self.trouble = f"{self._path} can't be read: {error}"
            if schema.damaged(error):
                salvage.suspect(self._path)
            raise StoreError(self.trouble) from error
        finally:
            self.reading_since = None
        self.trouble = None
        return found

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
