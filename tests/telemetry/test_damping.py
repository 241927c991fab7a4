"""Lines that say the same are one a minute, and none of them goes uncounted."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Hashable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.telemetry import damping
from bridge.telemetry.damping import (
    MOST_WINDOWS,
    Damper,
    Line,
    likeness_of_a_librarys,
    likeness_of_our_own,
)

UNHURRIED = settings(deadline=None)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(damping, "monotonic", clock)
    return clock


Said = tuple[Line, Hashable]
"""A line, with what it has in common with those that say the same."""


def of_a_library(
    template: str = "Unable connect to node with id %s: %s",
    *filled_in: object,
    name: str = "aiokafka.client",
    level: int = logging.ERROR,
) -> Said:
    record = logging.LogRecord(name, level, __file__, 1, template, filled_in, None)
    return {"event": record.getMessage()}, likeness_of_a_librarys(record)


def of_ours(event: str, level: str = "warning", **fields: Any) -> Said:
    line = {"event": event, "logger": "bridge.test", "level": level, "timestamp": object(), **fields}
    return line, likeness_of_our_own(line)


class Written:
    """What passes a damper, as the log's handler asks it."""

    def __init__(self) -> None:
        self.damper = Damper()
        self.lines: list[str] = []
        self.counts: list[int] = []

    def give(self, said: Said) -> None:
        self.tell()
        line, alike = said
        if self.damper.admits(line, alike):
            self.lines.append(line["event"])

    def tell(self, *, at_once: bool = False) -> None:
        for line, count in self.damper.due(at_once=at_once):
            self.lines.append(line["event"])
            self.counts.append(count)


def test_a_flood_of_a_library_is_one_line_and_then_one_a_minute_that_tells_how_many(clock: Clock) -> None:
    written = Written()
    for number in range(1400):
        written.give(of_a_library("Unable connect to node with id %s: %s", number % 3, f"Err {number}"))
        clock.now += 0.04
    assert written.lines == ["Unable connect to node with id 0: Err 0"]
    clock.now += 4.1
    written.tell()
    assert written.lines[1:] == ["Unable connect to node with id 1: Err 1399"]
    assert written.counts == [1399]
    for number in range(10):
        written.give(of_a_library("Unable connect to node with id %s: %s", 0, f"Late {number}"))
    assert len(written.lines) == 2, "the line that told was one of this minute"
    clock.now += 61
    written.give(of_a_library("Unable connect to node with id %s: %s", 0, "later still"))
    assert written.lines[2:] == ["Unable connect to node with id 0: Late 9"]
    assert written.counts == [1399, 10]
    clock.now += 61
    written.tell()
    assert written.counts == [1399, 10, 1]
    clock.now += 61
    written.tell()
    assert written.damper.seconds() is None
    written.give(of_a_library())
    assert len(written.lines) == 5, "once it has been quiet for a minute the next is told at once"


@pytest.mark.parametrize(
    "other",
    [
        of_a_library("Heartbeat failed: %s", "x"),
        of_a_library("Unable connect to node with id %s: %s", 1, "x", name="aiokafka.cluster"),
        of_a_library("Unable connect to node with id %s: %s", 1, "x", level=logging.WARNING),
        of_ours("source lost", reason="x"),
    ],
    ids=["another template", "another logger", "another level", "the bridge's"],
)
def test_lines_that_say_something_else_are_apart(other: Said) -> None:
    written = Written()
    written.give(of_a_library("Unable connect to node with id %s: %s", 1, "x"))
    written.give(other)
    assert len(written.lines) == 2


def test_numbers_in_a_text_that_a_library_filled_in_itself_tell_nothing_apart() -> None:
    written = Written()
    for number in range(5):
        written.give(of_a_library(f"Task-{number} at 0x7f{number}ab was destroyed but it is pending!"))
    assert len(written.lines) == 1


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        (
            {"reason": "no answer from h:1", "pause": 0.5},
            {"reason": "no answer from h:2", "pause": 9.0},
            True,
        ),
        ({"reason": "no answer"}, {"reason": "refused"}, False),
        ({"source": "a1", "reason": "no answer"}, {"source": "a2", "reason": "no answer"}, False),
        ({"id": "1", "cause": "too_large"}, {"id": "1", "cause": "too_large"}, False),
        ({"message": "m1", "reason": "no answer"}, {"message": "m2", "reason": "no answer"}, True),
        ({"level": "info"}, {"level": "info"}, False),
    ],
    ids=["numbers", "reasons", "sources", "one event", "messages", "not a warning"],
)
def test_lines_of_the_bridge_are_alike_when_their_texts_are(
    first: dict[str, Any], second: dict[str, Any], alike: bool
) -> None:
    written = Written()
    written.give(of_ours("lost", **first))
    written.give(of_ours("lost", **second))
    assert len(written.lines) == (1 if alike else 2)


def test_memory_is_bounded_and_what_is_forgotten_is_told(clock: Clock) -> None:
    written = Written()
    for number in range(10 * MOST_WINDOWS):
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        written.give(of_a_library(letters))
        written.give(of_a_library(letters))
    assert len(written.damper._windows) == MOST_WINDOWS
    written.tell(at_once=True)
    assert sum(written.counts) == 10 * MOST_WINDOWS
    assert len(written.damper._windows) == 0
    assert written.damper.holding == 0


def test_what_is_held_back_keeps_nothing_alive() -> None:
    class Failed(Exception):  # noqa: N818
        pass

    def held() -> weakref.ref[Failed]:
        try:
            raise Failed("with frames")  # noqa: TRY301 - for its traceback
        except Failed as error:
            admitted = damper.admits(*of_ours("failed", reason="y", exc_info=error))
            reference = weakref.ref(error)
        assert not admitted
        return reference

    damper = Damper()
    assert damper.admits(*of_ours("failed", reason="y"))
    reference = held()
    gc.collect()  # an exception and the frame that caught it hold each other
    assert reference() is None
    [(line, count)] = damper.due(at_once=True)
    assert (line["event"], line["reason"], count) == ("failed", "y", 1)


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 45)), max_size=200))
def test_every_line_is_written_or_counted(lines: list[tuple[int, float]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(damping, "monotonic", clock)
        written = Written()
        told: dict[str, list[float]] = {}
        for which, pause in lines:
            before = len(written.lines)
            written.give(of_a_library("abcdef"[which]))
            for line in written.lines[before:]:
                told.setdefault(line, []).append(clock.now)
            clock.now += pause
        written.tell(at_once=True)
    # Each line that tells a count stands for one of those it counts.
    assert len(written.lines) - len(written.counts) + sum(written.counts) == len(lines)
    for times in told.values():
        assert all(later - earlier >= 60 for earlier, later in pairwise(times))
