"""Which directories are watched, and which files are wanted: paths, depth and patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from unicodedata import normalize

from bridge.sources.dcache.config import DcacheConfig


class Scope:
    """What of a dCache's namespace a source is about."""

    def __init__(self, config: DcacheConfig) -> None:
        self.roots: Sequence[str] = config.paths
        self._depth = config.depth if config.recursive else 0
        self._include = [_Pattern(pattern) for pattern in config.include]
        self._exclude = [_Pattern(pattern) for pattern in config.exclude]

    def root_of(self, path: str) -> str | None:
        """Return the watched path that `path` is, or is below; the nearest, None when there is none."""
        found = [root for root in self.roots if is_at_or_below(path, root)]
        return max(found, key=len, default=None)

    def relative(self, path: str) -> str:
        """Return `path` as seen from its watched path, which has it; empty for the watched path itself."""
        root = self.root_of(path)
        return path if root is None else path.removeprefix(root).removeprefix("/")

    def has_directory(self, path: str) -> bool:
        """Return whether the directory `path` is to be watched."""
        if self.root_of(path) is None:
            return False
        relative = self.relative(path)
        if not relative:
            return True
        depth = relative.count("/") + 1
        return (self._depth is None or depth <= self._depth) and not self._excluded(relative)

    def has_file(self, path: str) -> bool:
        """Return whether the file `path`, in a directory that is watched, is wanted."""
        relative = self.relative(path)
        if self._excluded(relative):
            return False
        return not self._include or any(pattern.fits(relative) for pattern in self._include)

    def _excluded(self, relative: str) -> bool:
        """Return whether it, or a directory above it, fits a pattern of `exclude`."""
        if not self._exclude:
            return False
        parts = relative.split("/")
        ways = ["/".join(parts[: at + 1]) for at in range(len(parts))]
        return any(pattern.fits(way) for way in ways for pattern in self._exclude)


class _Pattern:
    """Without a slash it is about the last part of a path, with one about the path as a whole.

    An `é` is one character or two (NFC, NFD), as the uploader's system has it: a pattern means both.
    """

    def __init__(self, pattern: str) -> None:
        self._whole = "/" in pattern
        self._fits = re.compile(translate(normalize("NFC", pattern.removesuffix("/")))).match

    def fits(self, relative: str) -> bool:
        found = relative if self._whole else relative.rpartition("/")[2]
        return self._fits(normalize("NFC", found)) is not None


def is_at_or_below(path: str, directory: str) -> bool:
    """Return whether `path` is `directory` or in it, at any depth."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def joined(directory: str, name: str) -> str:
    """Return the path of `name` in `directory`."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"
