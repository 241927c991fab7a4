"""All that the commands print, whatever is closed, full or gone at its other end.

Nothing that others wrote moves the cursor or colours the screen.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import TextIOWrapper
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column of what is printed in columns."""

    name: str
    cell: Callable[[Any], object]
    """Returns what stands in it for an item."""
    most: int | None = None
    """Letters of it that are shown."""
    right: bool = False
    """Whether it stands to the right, as numbers do."""


def open_output() -> None:
    """Make standard output ready for what others wrote, and take the standard descriptors that were closed.

    Else the next file or socket that is opened gets the number of one that was (`2>&-`), and what is meant
    for a person goes there. To read or print fails then, to complain does not.
    """
    for name, access, mode in (
        ("stdin", os.O_WRONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal without UTF-8 shows `→` as an escape
        sys.stdout.reconfigure(errors="backslashreplace")


def let_go_of_output() -> str | None:
    """Tell why standard output can't be written, None when it can; the interpreter must not try again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output can't be written: {error.strerror}"
    return None


def say(line: str = "", *, at_once: bool = False) -> None:
    """Print a line; `at_once` for one that must not wait for those that follow."""
    print(on_one_line(line), flush=at_once)


def say_document(document: object) -> None:
    """Print a JSON document, as a line."""
    print(json.dumps(document))


def say_items(items: Sequence[Any], columns: Sequence[Column], *, as_json: bool, none: str = "") -> None:
    """Print a line for each of `items`, which are dataclasses: in columns, or a document; `none` for none."""
    if as_json:
        for item in items:
            say_document(asdict(item))
    elif items:
        for line in table(columns, items):
            say(line)
    else:
        say(none)


def write(text: str) -> None:
    """Write a text as it is, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(text: str, speaker: str = "oscar-bridge: ") -> None:
    """Tell a person on standard error; if that is closed or full, the exit status tells what it can."""
    with suppress(OSError):
        print("\n".join(map(escaped, f"{speaker}{text}".split("\n"))), file=sys.stderr)


def table(columns: Sequence[Column], items: Sequence[Any]) -> Iterator[str]:
    """Return lines with the items in columns, below the columns' names."""
    rows = [[column.name for column in columns]]
    rows += [[on_one_line(str(column.cell(item)), column.most) for column in columns] for item in items]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    widths[-1] = 0  # behind the last is nothing
    for row in rows:
        yield "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )


def on_one_line(text: str, longest: int | None = None) -> str:
    """Write what is no letter as a blank, and at most so many letters."""
    line = text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def escaped(text: str) -> str:
    """Write what is no letter as Python escapes it, and so each text in its own way."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
