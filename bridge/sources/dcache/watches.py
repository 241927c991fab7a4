"""Which subscription watches which directory: an event of dCache names a subscription, never a path."""

from __future__ import annotations

from collections.abc import Collection

from bridge.sources.dcache.rest.connection import key_of
from bridge.sources.dcache.scope import is_at_or_below, joined


class Watches:
    """The watched directories of a channel.

    A subscription is the directory's, whatever it is called (dCache keys it by the PNFS-ID), so a moved
    directory keeps its own, and making the watch again shows its new path.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        """The directories, by the key of their subscription."""
        self._keys: dict[str, str] = {}
        """The keys of the subscriptions, by path."""
        self._seen: dict[str, tuple[str, str]] = {}
        """PNFS-ID and subscription, by key, of those for which it is sure which directory they watch."""

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, subscription: str, path: str) -> None:
        """Note that `subscription` is now about `path`, whatever it or others were about before."""
        key = key_of(subscription)
        self._drop(key)
        other = self._keys.get(path)
        if other is not None:  # That one is about a directory that was here before.
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
        """No longer be sure of what the subscriptions with these keys watch, or whether they exist."""
        for key in keys:
            self._seen.pop(key, None)

    def keys(self) -> set[str]:
        """Return the keys of all subscriptions."""
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
        return [(key, at) for at, key in self._keys.items() if is_at_or_below(at, path)]

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
        """Forget all subscriptions: the channel is gone."""
        self._paths.clear()
        self._keys.clear()
        self._seen.clear()

    def _drop(self, key: str) -> str | None:
        self._seen.pop(key, None)
        path = self._paths.pop(key, None)
        if path is not None and self._keys.get(path) == key:
            del self._keys[path]
        return path
