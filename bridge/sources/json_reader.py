"""Reading JSON as the standard library does, in less time."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json


def load(body: bytes) -> Any:
    """Read JSON as `json.loads` does. Raises as it does.

    A reader that needs half the time takes part of what that takes, and reads the same in it.
    """
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return json.loads(body)
