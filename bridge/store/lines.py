"""How a line of the journal is made of what was noted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from time import monotonic

from bridge.store.segments import COLUMNS, escape

WIDTH = 2 * COLUMNS.index("job") - 2
"""Texts of a line: both times in one, and what else each line has, with a tab before each but the first."""


def encode(texts: list[str], more: Mapping[int, Sequence[object]]) -> bytes:
    """Make lines of texts, one line's behind the other's.

    At the even places is what the journal adds: the end of the line before with the times, and tabs; at the
    odd ones is what was noted. `more` are the other columns of lines that have any, by the place of their
    last text.
    """
    noted = texts[1::2]
    all_noted = "".join(noted)
    if "\t" in all_noted or "\n" in all_noted or "\\" in all_noted or "\0" in all_noted:
        texts = texts.copy()
        texts[1::2] = map(escape, noted)
    if more:
        texts = texts.copy()
        for at, others in more.items():
            texts[at] = "\t".join([texts[at], *[escape(str(each or "")) for each in others]])
    return ("".join(texts)[1:] + "\n").encode("utf-8", "surrogatepass")


def begin_line(at: float, since: float | None) -> str:
    """Return the end of the line before, and what a line begins with."""
    return f"\n{milliseconds(at)}\t{'' if since is None else milliseconds(since)}\t"


def milliseconds(at: float) -> str:
    """Return a monotonic time as `COLUMNS` has it."""
    return str(max(0, int((at + time.time() - monotonic()) * 1000)))
