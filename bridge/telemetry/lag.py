"""How late the event loop is: all that waits in it is as late."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import NoReturn

from bridge.telemetry.counting import Spread

_SECONDS = 1.0
"""Between two looks, which cost 20 µs each."""


async def measure(lag: Spread) -> NoReturn:
    """Observe in `lag` how many seconds too late this was woken, until cancelled."""
    while True:
        due = monotonic() + _SECONDS
        await asyncio.sleep(_SECONDS)
        lag.observe(max(0.0, monotonic() - due))
