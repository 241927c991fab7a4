"""The configuration that is being made: lines with comments, each with its origin in DCNiOS's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

from bridge.dcnios.remarks import Origin

CONFIGURATION = "bridge.yaml"
SECRETS = "secrets"
"""The directory of the secrets' files, beside the configuration."""
Setting: TypeAlias = "str | int | bool | list[str] | dict[str, str | int | bool]"
"""What may stand behind a key."""


@dataclass(slots=True)
class Line:
    """One `key: value`."""

    key: str
    value: Setting
    origin: Origin
    comment: str = ""


@dataclass(slots=True)
class Entry:
    """A cluster, a service or a source with its lines, or a route, which has no key."""

    key: str
    origin: Origin
    lines: list[Line] = field(default_factory=list)

    def put(self, key: str, value: Setting, origin: Origin | None = None, comment: str = "") -> None:
        """Add a line."""
        self.lines.append(Line(key, value, origin or self.origin, comment))


@dataclass(slots=True)
class Draft:
    """All of it."""

    clusters: list[Entry] = field(default_factory=list)
    services: list[Entry] = field(default_factory=list)
    sources: list[Entry] = field(default_factory=list)
    routes: list[Entry] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    """Name of a file → the secret in it."""
    brought: dict[str, str] = field(default_factory=dict)
    """Name of a file beside the configuration that a person brings → where it comes from."""

    def secret(self, name: str, text: str) -> str:
        """Keep a secret; return the path of its file as the configuration gives it."""
        return f"{SECRETS}/{_put(self.secrets, name, '', text)}"

    def bring(self, path: str, suffix: str | None = None) -> str:
        """Return the name of a file beside the configuration that a person makes of the one at `path`."""
        named = PurePosixPath(path)
        stem = named.stem.strip(".") or "store"
        return _put(self.brought, stem, named.suffix if suffix is None else suffix, path)

    def origin_of(self, key: str) -> Origin | None:
        """Return the origin of what a mistake in the configuration is about; None when it has none."""
        room, _, rest = key.partition(".")
        if room.startswith("routes["):
            entries = [self.routes[int(room[len("routes[") : -1])]]
        else:
            name, _, rest = rest.partition(".")
            entries = [entry for entry in getattr(self, room, ()) if entry.key == name]
        for entry in entries:
            own = rest.partition(".")[0].partition("[")[0]
            return next((line.origin for line in entry.lines if line.key == own), entry.origin)
        return None


def _put(files: dict[str, str], stem: str, suffix: str, what: str) -> str:
    """Give `what` the first name that is free, or its own, and return that."""
    name, number = stem + suffix, 1
    while files.get(name, what) != what or name in (SECRETS, CONFIGURATION):
        number += 1
        name = f"{stem}-{number}{suffix}"
    files[name] = what
    return name
