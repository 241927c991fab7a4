"""What outlives the process: the stream's position in the store, and a small file beside it."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from bridge.core.errors import SourceLost, StoreError
from bridge.sources.dcache.scope import is_at_or_below


@dataclass(slots=True)
class Position:
    """How far the stream has been kept, and what listings are to make of what they find."""

    channel: str
    event: str | None = None
    """SSE id of the last event kept; None before the first."""
    since: float | None = None
    """While the first listing is not complete: files last changed before this time (seconds since 1970, by
    dCache's clock) are only marked, those changed later enter. None once it is: then all that has not
    entered does."""
    listed: int | None = None
    """Number of the last complete listing."""
    unlisted: dict[str, float | None] = field(default_factory=dict)
    """Directories that no listing has shown yet though a complete one is done, for each what `since` is for
    all below it: it could not be read, or is a path that is new in the configuration."""
    roots: list[str] | None = None
    """The paths that were watched; None in what an older bridge kept."""

    def since_in(self, directory: str | None) -> float | None:
        """Return what `since` is for the files in `directory` (None: in one that is not known)."""
        if self.since is not None or not self.unlisted:
            return self.since
        if directory is None:
            return next((since for since in self.unlisted.values() if since is not None), None)
        above = [at for at in self.unlisted if is_at_or_below(directory, at)]
        return self.unlisted[max(above, key=len)] if above else None

    def unlisted_after(self, paths: Sequence[str], unseen: Sequence[str]) -> dict[str, float | None]:
        """Return what `unlisted` is once `paths` were listed with all below them, but for `unseen`."""
        still = {at: self.since_in(at) for at in unseen}
        others = {
            at: since
            for at, since in self.unlisted.items()
            if not any(is_at_or_below(at, path) for path in paths)
        }
        return others | {at: since for at, since in still.items() if since is not None}

    def text(self) -> str:
        """Write it for the store."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps({key: value for key, value in kept.items() if value not in (None, {})})

    @classmethod
    def of(cls, text: str) -> Position:
        """Read what `text` wrote. Raise StoreError when it is something else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            raise StoreError(f"the store's position is none of dCache's: {text[:200]}") from None


class OwnFile:
    """A file in `state_dir` with what must outlive the store: this replica's name, and until when it heard.

    Not in the store, so that a bridge whose store was lost neither throws away what came since nor makes
    jobs of everything.
    """

    def __init__(self, state_dir: Path, identity: str) -> None:
        name = re.sub(r"[^A-Za-z0-9_-]", "-", identity)[:40]
        digest = blake2b(identity.encode(), digest_size=4).hexdigest()
        self.path = state_dir / f"dcache-{name}-{digest}.json"
        self.suffix = ""
        self.heard: float | None = None
        """Until when events were kept, by dCache's clock; seconds since 1970."""
        self._saving = threading.Lock()

    def load(self) -> bool:
        """Read it; True when it was there, though perhaps not whole."""
        there = True
        try:
            kept: Any = json.loads(self.path.read_text(encoding="utf-8"))
            self.suffix = str(kept["suffix"])
            self.heard = None if kept.get("heard") is None else float(kept["heard"])
        except FileNotFoundError:
            there = False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.suffix, self.heard = "", None
        if not re.fullmatch(r"[0-9a-f]{12}", self.suffix):
            self.suffix = secrets.token_hex(6)
        return there

    def save(self) -> None:
        """Write it, durably, in whatever thread. Raise SourceLost."""
        with self._saving:
            self._save()

    def _save(self) -> None:
        draft = self.path.with_suffix(".draft")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"suffix": self.suffix, "heard": self.heard}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            raise SourceLost(f"{self.path} can't be written: {error.strerror}") from None
