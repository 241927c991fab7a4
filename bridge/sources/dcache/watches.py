"""Which subscription watches which directory. dCache tells a subscription with an event, never a path."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from bridge.sources.dcache.scope import joined

PAIR_SECONDS = 2.0
"""The two halves of a rename come within this time of each other, in either order, or never."""
_MOST_COOKIES = 20_000


def key_of(subscription: str) -> str:
    """Return what names a subscription within its channel: the end of its URL.

    The front of it may be another for each client, where the frontend is behind a proxy.
    """
    return subscription.rpartition("/subscriptions/")[2]


class Watches:
    """The watched directories of a channel.

    A subscription is the directory's, whatever it is called (dCache keys it by the PNFS-ID), so a moved
    directory keeps its own, and making the watch again tells its new path.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        """By subscription."""
        self._keys: dict[str, str] = {}
        """By path."""
        self._seen: dict[str, tuple[str, str]] = {}
        """PNFS-ID and subscription, by key, where it is sure which directory it is about."""

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, subscription: str, path: str) -> None:
        """Note that `subscription` is now about `path`, whatever either was about before."""
        key = key_of(subscription)
        self._drop(key)
        other = self._keys.get(path)
        if other is not None:  # it is about a directory that was here before
            self._drop(other)
        self._paths[key] = path
        self._keys[path] = key

    def recognise(self, subscription: str, path: str, pnfsid: str) -> None:
        """Note that the directory at `path`, which `subscription` watches, is `pnfsid`."""
        key = key_of(subscription)
        if self._keys.get(path) == key:
            self._seen[key] = pnfsid, subscription

    def of_directory(self, path: str, pnfsid: str) -> str | None:
        """Return the subscription about `path` if it is sure that it watches the directory `pnfsid`."""
        seen, subscription = self._seen.get(self._keys.get(path, ""), ("", ""))
        return subscription if seen == pnfsid else None

    def distrust(self, keys: Collection[str]) -> None:
        """Be sure no longer of these."""
        for key in keys:
            self._seen.pop(key, None)

    def keys(self) -> set[str]:
        """Return the keys of all."""
        return set(self._paths)

    def path_of(self, subscription: str) -> str | None:
        """Return the directory it is about, None when that is not known."""
        return self._paths.get(key_of(subscription))

    def key_at(self, path: str) -> str | None:
        """Return the key of the subscription about `path`."""
        return self._keys.get(path)

    def end(self, subscription: str) -> str | None:
        """Forget a subscription that is over; return the path it was about."""
        return self._drop(key_of(subscription))

    def below(self, path: str) -> list[tuple[str, str]]:
        """Return key and path of each watch at `path` and below."""
        front = "/" if path == "/" else f"{path}/"
        return [(key, at) for at, key in self._keys.items() if at == path or at.startswith(front)]

    def move(self, keys: Collection[str], old: str, new: str) -> None:
        """Note that the directory `old` is now `new`, with those of `keys` that are known at or below it.

        They are what was there when it left: by now another directory may be where it was.
        """
        moved = [(key, at, self._seen.get(key)) for key, at in self.below(old) if key in keys]
        for key, _, _ in moved:
            self._drop(key)
        for key, at, seen in moved:
            self.add(key, new if at == old else joined(new, at[len(old) :].lstrip("/")))
            if seen is not None:
                self._seen[key] = seen

    def clear(self) -> None:
        """Forget all: the channel is gone."""
        self._paths.clear()
        self._keys.clear()
        self._seen.clear()

    def _drop(self, key: str) -> str | None:
        self._seen.pop(key, None)
        path = self._paths.pop(key, None)
        if path is not None and self._keys.get(path) == key:
            del self._keys[path]
        return path


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a rename."""

    path: str | None
    """None where the directory it is in is not known."""
    at: float
    keys: frozenset[str] = frozenset()
    """The watches at and below a directory that left."""


class Moves:
    """Pairs the halves of renames by their cookie, in whatever order they come."""

    def __init__(self) -> None:
        self._from: OrderedDict[str, Half] = OrderedDict()
        self._to: OrderedDict[str, Half] = OrderedDict()
        self._within: OrderedDict[str, None] = OrderedDict()

    def left(self, cookie: str, half: Half) -> Half | None:
        """Take an IN_MOVED_FROM; return the other half when that has come already."""
        return self._pair(cookie, half, self._from, self._to)

    def came(self, cookie: str, half: Half) -> Half | None:
        """Take an IN_MOVED_TO; return the other half when that has come already."""
        return self._pair(cookie, half, self._to, self._from)

    def was_within(self, cookie: str) -> bool:
        """Return whether both halves of the rename have come."""
        return cookie in self._within

    def gone(self, now: float) -> list[Half]:
        """Return what left and has not come anywhere in time, each told once."""
        _outdated(self._to, now)
        return _outdated(self._from, now)

    def due(self) -> float | None:
        """Return when `gone` is worth asking next, None while nothing waits for its other half."""
        oldest = [next(iter(halves.values())).at for halves in (self._from, self._to) if halves]
        return min(oldest) + PAIR_SECONDS if oldest else None

    def _pair(
        self, cookie: str, half: Half, mine: OrderedDict[str, Half], others: OrderedDict[str, Half]
    ) -> Half | None:
        other = others.pop(cookie, None)
        if other is None or half.at - other.at > PAIR_SECONDS:
            mine[cookie] = half
            mine.move_to_end(cookie)
            return None
        self._within[cookie] = None
        if len(self._within) > _MOST_COOKIES:
            self._within.popitem(last=False)
        return other


def _outdated(halves: OrderedDict[str, Half], now: float) -> list[Half]:
    """Take out those that have waited long enough; the oldest come first."""
    taken = []
    while halves and now - next(iter(halves.values())).at > PAIR_SECONDS:
        taken.append(halves.popitem(last=False)[1])
    return taken
