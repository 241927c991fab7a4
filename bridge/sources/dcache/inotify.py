"""The inotify events of dCache's stream, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from bridge.sources.dcache.rest.namespace import is_name
from bridge.sources.dcache.rest.sse import ServerSentEvent

CLOSED = "IN_CLOSE_WRITE"
MOVED_IN = "IN_MOVED_TO"
MOVED_OUT = "IN_MOVED_FROM"
MOVED_SELF = "IN_MOVE_SELF"
ARRIVALS = frozenset((CLOSED, MOVED_IN))
"""Flags after which there is a file to look up; its version names what is made of them."""


class InotifyEvent(NamedTuple):
    """One inotify event of the stream (InotifyEventPayload.java)."""

    subscription: str
    name: str | None
    """None in events about the watched directory itself."""
    action: str
    is_directory: bool
    cookie: str | None
    mask: Sequence[str]


def read(sent: ServerSentEvent) -> InotifyEvent | str:
    """Read an `inotify` event; return why it is none where it is none."""
    if sent.fault is not None:
        return sent.fault
    try:
        content = json.loads(sent.data)
        event, subscription = content["event"], content["subscription"]
        mask = [flag for flag in _list(event["mask"]) if isinstance(flag, str)]
        name, cookie = event.get("name"), event.get("cookie")
        # Half of a surrogate pair can be neither kept nor sent.
        f"{name}{cookie}{subscription}{''.join(mask)}".encode()
    except RecursionError:
        return "it is no JSON"
    except UnicodeEncodeError:
        return "its name is no text"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"it is no inotify event ({type(error).__name__}: {error})"
    actions = [flag for flag in mask if flag != "IN_ISDIR"]
    if not actions or not isinstance(subscription, str):
        return "it tells no action, or no subscription"
    if name is not None and not (isinstance(name, str) and (is_name(name) or not name)):
        return "its name is none of a file"
    if not sent.id and name:
        return "it has no id"
    return InotifyEvent(
        subscription,
        name or None,
        actions[0],
        "IN_ISDIR" in mask,
        cookie if isinstance(cookie, str) else None,
        mask,
    )


def _list(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError("no list")
    return content
