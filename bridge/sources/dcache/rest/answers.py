"""What an answer of dCache means when it is no success, and how its JSON is read."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

from bridge.net.certificates import refusal
from bridge.net.unanswered import why_unanswered
from bridge.telemetry.logging import excerpt

_NOT_NOW = frozenset((408, 425, 429))
"""Of the answers 4xx those that ask to come again."""
_MOST_DIGITS = 30


class Unanswered(Exception):  # noqa: N818 - a state of the connection more than a fault
    """No answer, or one that asks to come again: it is worth trying later."""


class Refused(Unanswered):
    """The credential is missing, or dCache does not take it."""


class Failing(Unanswered):
    """An answer about this one request, such as a 500: others may be answered well."""


class Denied(Exception):  # noqa: N818
    """This user may not do it."""


class Missing(Exception):  # noqa: N818
    """It is not there."""


def failure_of(status: int, reason: str) -> Exception:
    """Return the exception for an answer with that status, which is neither a success nor a 401."""
    if status == 404:
        return Missing(reason)
    if status == 403:
        return Denied(reason)
    if status == 500 or (400 <= status < 500 and status not in _NOT_NOW):
        return Failing(reason)
    return Unanswered(reason)


def reason_of(error: BaseException) -> str:
    """Return why there was no answer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not believed: {error.verify_message}"
    if (ours := refusal(error)) is not None:
        return ours
    return excerpt(why_unanswered(error))


def message(text: str) -> str:
    """Return what dCache says in its JSON for an error, older or newer (RFC 7807); else nothing."""
    try:
        content = mapping(json.loads(text))
        messages = [str(mapping(one).get("message")) for one in content.get("errors") or ()]
        return "; ".join(messages) or str(content.get("detail") or content.get("title") or "")
    except (ValueError, TypeError, RecursionError):
        return ""


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def decode(text: str) -> Any:
    """Return the JSON that `text` is. Raise ValueError, RecursionError."""
    return _DECODER.decode(text)


def _whole(digits: str) -> int | str:
    """Return a JSON number; as text where it has more digits than any that dCache means."""
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


_DECODER = json.JSONDecoder(parse_int=_whole)
