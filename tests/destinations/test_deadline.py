"""One timer ends what takes too long, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from bridge.destinations.oscar.deadline import Deadline
from tests.pipeline.clock import VirtualLoop, now


async def test_what_takes_too_long_ends_with_a_timeout_error() -> None:
    deadline = Deadline(0.05)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_ends_in_time_is_left_alone() -> None:
    deadline = Deadline(0.2)
    for _ in range(3):
        async with deadline:
            await asyncio.sleep(0.1)


def test_each_of_many_has_its_own_time() -> None:
    deadline = Deadline(0.1)
    took = []

    async def work(begin: float) -> None:
        await asyncio.sleep(begin)
        began = now()
        with pytest.raises(TimeoutError):
            async with deadline:
                await asyncio.Event().wait()
        took.append(now() - began)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(work(number * 0.02))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(all_of_them())
    assert took == [pytest.approx(0.1)] * 20


async def test_a_cancellation_from_elsewhere_goes_its_way() -> None:
    deadline = Deadline(10)
    inside = asyncio.Event()

    async def work() -> None:
        async with deadline:
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_same_moment_is_not_swallowed() -> None:
    deadline = Deadline(0.01)
    inside = asyncio.Event()

    async def work() -> None:
        async with deadline:
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task.cancel()  # while the timeout is on its way
                raise

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_its_own_is_given_on() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Deadline(1):
            _ = 1 / 0
