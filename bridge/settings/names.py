"""Names that are not known, and those that may be meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MOST_SHOWN = 12


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?`, the names there are when none is close, or nothing when there are none."""
    names = list(known)
    by_lower = {each.lower(): each for each in names}
    if close := get_close_matches(name.lower(), by_lower, n=1):
        return f"; did you mean `{by_lower[close[0]]}`?"
    if not names or len(names) > _MOST_SHOWN:
        return ""
    return f"; there {'is' if len(names) == 1 else 'are'} " + ", ".join(f"`{each}`" for each in sorted(names))
