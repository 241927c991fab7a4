"""What a person has set in place of the configuration's values, kept over restarts."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias, TypeGuard, get_args

from bridge.store.directory import parsed, replace

FILE = "overrides.json"

Kind: TypeAlias = Literal["source", "service", "cluster"]
Value: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Override:
    """One value in force in place of the file's."""

    kind: Kind
    key: str
    name: str
    """`paused`, `concurrency`, `rate` or `active_jobs`."""
    value: Value
    replaced: Value
    """The file's. When the file has another, this is no longer in force."""
    since: float
    """Seconds since 1970."""
    until: float | None
    """Likewise; None for as long as nobody ends it."""


def read(state_dir: Path) -> list[Override]:
    """Return those kept in `state_dir`; none where there is no file. Raises StoreError when it is damaged."""
    told = "it has what a person paused or limited; remove it to go on with the configuration's values"
    return parsed(state_dir / FILE, _overrides, told)


def write(state_dir: Path, overrides: Collection[Override]) -> None:
    """Keep `overrides` alone, all or, if that fails, none of the change. Raises StoreError."""
    text = json.dumps({"overrides": [asdict(each) for each in overrides]}, indent=1)
    replace(state_dir / FILE, text + "\n")


def _overrides(document: bytes) -> list[Override]:
    return [_checked(Override(**each)) for each in json.loads(document)["overrides"]]


def _checked(override: Override) -> Override:
    name, value = override.name, override.value
    a_limit = value == "auto" if name == "concurrency" else value is None
    if not (
        override.kind in get_args(Kind)
        and _is_number(override.since)
        and (override.until is None or _is_number(override.until))
        and (value is True if name == "paused" else a_limit or (_is_number(value) and value > 0))
    ):
        raise ValueError("a value that there is not")
    return override


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
