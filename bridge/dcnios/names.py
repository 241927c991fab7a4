"""Names of DCNiOS's elements as keys of the configuration."""

from __future__ import annotations

import re
from collections.abc import Collection

_LONGEST = 63
_FITS = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_LONGEST - 1}}}")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


def key_of(name: str, taken: Collection[str], fallback: str) -> str:
    """Return `name` as a key that is not `taken`: letters, digits, `-` and `_`, a letter or digit first."""
    fit = name if _FITS.fullmatch(name) else _UNFIT.sub("-", name).strip("-_")[:_LONGEST] or fallback
    key, number = fit, 1
    while key in taken:
        number += 1
        key = f"{fit[: _LONGEST - len(str(number)) - 1]}-{number}"
    return key
