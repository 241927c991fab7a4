"""Reading the store beside a running daemon, or without one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import bridge.store.schema as schema
from bridge.core.errors import StoreError
from bridge.store.migrations import VERSION
from bridge.store.schema import FILE

_Answer = TypeVar("_Answer")


class _NoStoreError(StoreError):
    """The state directory has no store."""


def read(state_dir: Path, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
    """Ask the store in `state_dir`. Raise StoreError when there is none, or it can't be read."""
    path = state_dir / FILE
    try:
        path.stat()
        with closing(schema.connect(path, mode="ro")) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise StoreError(
                    f"the store in {state_dir} has version {version} and this command reads version "
                    f"{VERSION}: use the command of the bridge that runs, or start this one once"
                )
            return question(connection)
    except FileNotFoundError:
        raise _NoStoreError(
            f"there is no store in {state_dir}: is state_dir right, and has the bridge run?"
        ) from None
    except (OSError, sqlite3.Error, schema.BrokenRowError) as error:
        raise StoreError(f"the store in {state_dir} can't be read: {error}") from error


def read_if_made(
    state_dir: Path, question: Callable[[sqlite3.Connection], _Answer], nothing: _Answer
) -> _Answer:
    """Ask the store in `state_dir`, or return `nothing` where none was ever made. Raise StoreError."""
    try:
        return read(state_dir, question)
    except _NoStoreError:
        return nothing
