"""What a queue's attributes tell, as far as they do: no server's text ends the reading."""

from __future__ import annotations

import json
from collections.abc import Mapping


def number(attributes: Mapping[str, str], name: str) -> int | None:
    """Return the number that an attribute is; None when it is not there, or no number."""
    value = attributes.get(name)
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else None


def most_receipts(attributes: Mapping[str, str]) -> int | None:
    """Return after how many receipts the queue moves a message to another; None when it does not."""
    try:
        told = json.loads(attributes.get("RedrivePolicy") or "{}")
        receipts = int(told["maxReceiveCount"])
    except (LookupError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return receipts if receipts > 0 else None


def dead_letter_queue(attributes: Mapping[str, str]) -> str:
    """Return the name (ARN) of that other queue, where `most_receipts` tells that there is one."""
    return str(json.loads(attributes["RedrivePolicy"]).get("deadLetterTargetArn"))
