"""A link of AMQP that is given up while it is being opened, on a real broker."""

from __future__ import annotations

import asyncio
import random

import pytest

from bridge.testing import opened
from tests.support.beds import made


@pytest.mark.prove
@pytest.mark.timeout(300)
async def test_a_link_that_is_given_up_at_any_moment_of_its_opening_ends(
    request: pytest.FixtureRequest, unique: str
) -> None:
    """Four of a thousand did not: aiormq kept the cancellation to itself, and the daemon waited."""
    dice = random.Random(1)
    async with made("amqp", unique, request) as bed:
        await bed.put(20)

        async def use() -> None:
            async with opened(bed.source()) as hands:
                await hands.take(20)
                await asyncio.Event().wait()

        for _ in range(1000):
            using = asyncio.create_task(use())
            await asyncio.sleep(dice.uniform(0, 0.12))
            using.cancel()
            _, left = await asyncio.wait([using], timeout=20)
            assert not left
