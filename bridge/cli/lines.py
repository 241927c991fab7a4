"""What is told, as it is written on a screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge.cli.options import FAILED

if TYPE_CHECKING:
    from bridge.commands import Command
    from bridge.store import Count


def when(seconds: float | None) -> str:
    """Write a time given in seconds since 1970."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def on_one_line(text: str, longest: int | None = None) -> str:
    """Keep what a foreign system wrote from moving the cursor or colouring the screen."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def escaped(text: str) -> str:
    """Show what a foreign system wrote letter for letter, and what is no letter as Python escapes it."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write rows as columns; the first row names them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def tell_of(count: Count, command: Command, done: str, thing: str) -> int:
    """Print what was `done` to how many; return the exit status."""
    print(f"{count.changed} {'would be ' if command.dry_run else ''}{done}")
    for reason, number in count.refused.items():
        print(f"{number} left as they are: {reason}")
    missing = len(command.numbers or ()) - count.changed - sum(count.refused.values())
    if missing > 0:
        named = f"{missing} of the {len(command.numbers or ())} numbers given"
        print(f"oscar-bridge: {named}: no such {thing} among those chosen", file=sys.stderr)
        return FAILED
    return 0
