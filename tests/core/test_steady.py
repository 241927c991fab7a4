"""A problem stays told until it has been over for as long as it must."""

from __future__ import annotations

import pytest

from bridge.core import steady
from bridge.core.steady import HELD_SECONDS, Steady


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steady, "monotonic", clock)
    return clock


def test_what_never_failed_is_well() -> None:
    thing = Steady()
    thing.recovered()
    assert thing.problem is None


def test_a_problem_is_told_while_it_lasts_however_long(clock: Clock) -> None:
    thing = Steady()
    thing.failed("lost: the broker is away")
    clock.now += 1000 * HELD_SECONDS
    assert thing.problem == "lost: the broker is away"


def test_one_that_is_over_is_told_until_that_has_held(clock: Clock) -> None:
    thing = Steady()
    thing.failed("lost")
    thing.recovered()
    clock.now += HELD_SECONDS - 1
    thing.recovered()  # as every batch tells: it is no new beginning
    assert thing.problem == "lost (over for 29 s, told until it has been for 30)"
    clock.now += 1
    assert thing.problem is None


def test_one_that_comes_and_goes_is_told_at_every_look(clock: Clock) -> None:
    thing = Steady()
    for _ in range(20):
        thing.failed("lost")
        assert thing.problem
        thing.recovered()
        for _ in range(3):
            clock.now += HELD_SECONDS / 4
            assert thing.problem


def test_a_start_that_went_well_is_well_at_once(clock: Clock) -> None:
    thing = Steady("not connected yet")
    assert thing.problem == "not connected yet"
    thing.clear()
    assert thing.problem is None
