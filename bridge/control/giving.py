"""Gives an order to the daemon that runs, or has it kept for the next one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge.control.losses import Acknowledgement, acknowledged
from bridge.control.orders import Order, Overrides, Row
from bridge.core.errors import StoreError, StoreLockedError
from bridge.settings import Settings
from bridge.store import losses, overrides
from bridge.store.directory import claim
from bridge.web.socket import ask


def give(settings: Settings, order: Order) -> tuple[list[Row], bool]:
    """Have `order` carried out by the daemon of `state_dir`, or for its next start when none runs.

    Returns what is in force then, and whether a daemon runs. Raises ValueError, StoreError, and OSError when
    one runs and gives no answer.
    """
    state_dir = settings.state_dir
    answer = ask(state_dir, order.model_dump()) if state_dir.is_dir() else None
    if answer is not None:
        return [Row(**row) for row in answer["rows"]], True
    values = Overrides(settings, overrides.read(state_dir), time.time())
    if order.changes:
        with _in_place_of_a_daemon(state_dir):
            values.there = values.after(order, time.time())
            overrides.write(state_dir, values.there)
    return values.rows(order, lambda _part: None), False


def acknowledge(settings: Settings, wanted: Acknowledgement) -> tuple[Mapping[str, Any], bool]:
    """Have `wanted` carried out, as `give` does an order.

    Returns what the daemon answers, and whether one runs: without one nobody can tell what goes on. Raises
    as `give` does.
    """
    state_dir = settings.state_dir
    answer = ask(state_dir, wanted.model_dump()) if state_dir.is_dir() else None
    if answer is not None:
        return answer, True
    with _in_place_of_a_daemon(state_dir):
        there = losses.read(state_dir)
        wanted.refuse_unknown(settings, there)
        if seen := [loss for loss in there if wanted.is_of(loss)]:
            losses.write(state_dir, [loss for loss in there if loss not in seen])
    return {"acknowledged": list(map(asdict, acknowledged(seen))), "going_on": []}, False


@contextmanager
def _in_place_of_a_daemon(state_dir: Path) -> Iterator[None]:
    """Hold the directory while inside. Raises StoreError when there is none, or a daemon has it."""
    if not state_dir.is_dir():
        raise StoreError(f"there is no {state_dir}: is state_dir right, and has the bridge run?")
    try:
        lock = claim(state_dir)
    except StoreLockedError as error:
        raise StoreError(f"{error}, which takes no command now: it starts or stops; try again") from error
    try:
        yield
    finally:
        os.close(lock)
