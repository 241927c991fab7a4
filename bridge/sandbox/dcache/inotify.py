"""Watches: selectors, flags, and who is told of what. After `restful/events/streams/inotify/*.java`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable

from bridge.sandbox.dcache.channel import Channel, url_of
from bridge.sandbox.dcache.errors import RefusalError
from bridge.sandbox.dcache.namespace import Namespace, Node

EVENTS = (
    "IN_ACCESS",
    "IN_ATTRIB",
    "IN_CLOSE_WRITE",
    "IN_CLOSE_NOWRITE",
    "IN_CREATE",
    "IN_DELETE",
    "IN_DELETE_SELF",
    "IN_MODIFY",
    "IN_MOVE_SELF",
    "IN_MOVED_FROM",
    "IN_MOVED_TO",
    "IN_OPEN",
)
_MACROS = {
    "IN_ALL_EVENTS": EVENTS,
    "IN_CLOSE": ("IN_CLOSE_WRITE", "IN_CLOSE_NOWRITE"),
    "IN_MOVE": ("IN_MOVED_FROM", "IN_MOVED_TO"),
}
_UNSUPPORTED = ("IN_DONT_FOLLOW", "IN_EXCL_UNLINK")
_MODIFIERS = ("IN_MASK_ADD", "IN_ONESHOT", "IN_ONLYDIR")
FLAGS = (*EVENTS, *_MACROS, *_UNSUPPORTED, *_MODIFIERS)
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PATH = re.compile(r"/(.*[^/])?", re.DOTALL)


class Selector:
    """What a client asks to be told of."""

    def __init__(self, path: str, flags: list[str] | None) -> None:
        self.path = path
        self.supplied = flags
        self.flags = (
            set(EVENTS) if flags is None else {one for flag in flags for one in _MACROS.get(flag, [flag])}
        )

    @classmethod
    def of_json(cls, document: object) -> Selector:
        """Read a selector as dCache does. Raises RefusalError (400; 500 when there is no path).

        The path's pattern is that of `selector-schema.json`, which the server publishes and does not check
        itself: here it is checked, so that a client keeps to it.
        """
        if not isinstance(document, dict):
            raise _bad("Bad selector value: not an object")
        for key in document:
            if key not in ("path", "flags"):
                raise _bad(f'Bad selector value: Unrecognized field "{key}", not marked as ignorable')
        flags = document.get("flags")
        if flags is not None:
            if not isinstance(flags, list):
                raise _bad("Bad selector value: Cannot deserialize value of type `EnumSet`")
            for flag in flags:
                if flag not in FLAGS:
                    kind = "AddWatchFlag"
                    raise _bad(f'Bad selector value: Cannot deserialize value of type `{kind}` from "{flag}"')
        path = document.get("path")
        if not isinstance(path, str):
            # Inotify.select asks for the path before it asks whether there is one.
            raise RefusalError(500, "Internal error: java.lang.IllegalStateException: path was not specified")
        if _PATH.fullmatch(path) is None:
            raise _bad(f"the path {path!r} does not match ^/(.*[^/])?$")
        selector = cls(path, flags)
        if unsupported := [flag for flag in _UNSUPPORTED if flag in selector.flags]:
            raise _bad(f"Unsupported flags: [{', '.join(unsupported)}]")
        return selector

    def as_json(self) -> dict[str, object]:
        """The selector as it was supplied."""
        return {"path": self.path} if self.supplied is None else {"path": self.path, "flags": self.supplied}


class Watch:
    """One client's watch of one file or directory: it follows its target when that is moved."""

    kind = "inotify"

    def __init__(
        self, channel: Channel, target: str, selector: Selector, ended: Callable[[Watch], None]
    ) -> None:
        self.channel = channel
        self.target = target
        # A subscription's id is its target's pnfsId in base64 (WatchIdentity.java), slashes and all.
        self.identity = base64.b64encode(bytes.fromhex(target)).decode().rstrip("=")
        self.url = url_of(channel.url, self.kind, self.identity)
        self.path = selector.path
        self.events = selector.flags & set(EVENTS)
        self.overflowing = False
        self._selector = selector
        self._ended = ended

    def merge(self, selector: Selector) -> None:
        """A second request for the same target: its flags replace the first's.

        With IN_MASK_ADD the selector becomes the union, but only the new flags are told:
        `Inotify.accept` reads the events from the request, not from the union.
        """
        self.events = selector.flags & set(EVENTS)
        if "IN_MASK_ADD" in selector.flags:
            union = (selector.flags | self._selector.flags) - {"IN_MASK_ADD"}
            selector = Selector(selector.path, [flag for flag in FLAGS if flag in union])
        self._selector = selector

    def selector(self) -> dict[str, object]:
        """The selector in force."""
        return self._selector.as_json()

    def tell(self, event: str) -> None:
        """Send an event, or lose it while the watch's queue overflows. IN_ONESHOT ends after the first."""
        if self.overflowing:
            return
        self.channel.tell(self, event)
        if "IN_ONESHOT" in self._selector.flags:
            self.channel.close_subscription(self)

    def overflowed(self) -> None:
        """Tell that events were lost, whatever flags were asked for."""
        self.overflowing = False
        self.channel.tell(self, _event("IN_Q_OVERFLOW"))

    def ended(self) -> None:
        """The subscription is over."""
        self._ended(self)
        self.channel.tell(self, _event("IN_IGNORED"))


class Inotify:
    """All watches of all channels."""

    def __init__(self) -> None:
        self._by_target: dict[str, dict[str, Watch]] = {}

    def notify(self, flag: str, target: str, name: str | None, cookie: str | None, *, is_dir: bool) -> None:
        """Tell every watch on `target` that wants this; the end of a target ends its watches."""
        watches = self._by_target.get(target)
        if not watches:
            return
        told = [watch for watch in watches.values() if flag in watch.events]
        if told:
            event = _event(flag, name, cookie, is_dir=is_dir)
            for watch in told:
                watch.tell(event)
        if flag == "IN_DELETE_SELF":
            for watch in list(watches.values()):
                watch.channel.close_subscription(watch)

    def subscribe(self, channel: Channel, selector: Selector, namespace: Namespace) -> tuple[Watch, bool]:
        """The watch, and whether it is new. Raises RefusalError (400) for what may not be watched."""
        node = _target(selector, namespace)
        watches = self._by_target.setdefault(node.pnfs_id, {})
        watch = watches.get(channel.identity)
        if watch is not None:
            watch.merge(selector)
            return watch, False
        watch = Watch(channel, node.pnfs_id, selector, self._forget)
        watches[channel.identity] = watch
        channel.subscriptions[watch.identity] = watch
        channel.system("NEW_SUBSCRIPTION", watch)
        return watch, True

    def watches(self, path: str | None = None) -> list[Watch]:
        """The watches there are, of that path or of all."""
        return [
            watch
            for watches in self._by_target.values()
            for watch in watches.values()
            if path in (None, watch.path)
        ]

    def _forget(self, watch: Watch) -> None:
        watches = self._by_target.get(watch.target, {})
        watches.pop(watch.channel.identity, None)
        if not watches:
            self._by_target.pop(watch.target, None)


def _target(selector: Selector, namespace: Namespace) -> Node:
    try:
        node = namespace.lookup(selector.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"Not found: Problem with path: No such file or directory: {selector.path}"
        raise RefusalError(400, message) from error
    if node.hidden or not node.readable:
        raise RefusalError(400, "Permission denied: Not allowed.")
    if "IN_ONLYDIR" in selector.flags and not node.is_dir:
        raise RefusalError(400, "Failed condition: IN_ONLYDIR with REGULAR target")
    return node


def _event(flag: str, name: str | None = None, cookie: str | None = None, *, is_dir: bool = False) -> str:
    event: dict[str, object] = {}
    if name is not None:
        event["name"] = name
    if cookie is not None:
        event["cookie"] = cookie
    event["mask"] = [flag, "IN_ISDIR"] if is_dir else [flag]
    return _json(event)


def _bad(message: str) -> RefusalError:
    return RefusalError(400, f"Bad selector: {message}")
