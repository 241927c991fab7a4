"""Gives an order to the daemon that runs, or has it kept for the next one."""

from __future__ import annotations

import os
import time

from bridge.control.orders import Order, Overrides, Row
from bridge.core.errors import StoreError, StoreLockedError
from bridge.settings import Settings
from bridge.store import overrides
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
        if not state_dir.is_dir():
            raise StoreError(f"there is no {state_dir}: is state_dir right, and has the bridge run?")
        try:
            lock = claim(state_dir)
        except StoreLockedError as error:
            raise StoreError(f"{error}, which takes no command now: it starts or stops; try again") from error
        try:
            values.there = values.after(order, time.time())
            overrides.write(state_dir, values.there)
        finally:
            os.close(lock)
    return values.rows(order, lambda _part: None), False
