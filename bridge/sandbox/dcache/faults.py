"""Trouble that lasts or waits. What strikes at once is in `trouble`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True, kw_only=True)
class Faults:
    """The faults in force. Counts go down as they strike."""

    lookup_failures: int = 0
    """So many namespace requests to come are answered with `lookup_status`."""
    lookup_status: int = 500
    lookup_delay_seconds: float = 0.0
    """Before every answer about the namespace."""
    subscription_failures: int = 0
    """So many subscriptions to come are answered with 500, as when ZooKeeper has no room for more watches
    (`Inotify.updateZK`)."""
    refusals: int = 0
    """So many requests to the API are answered with 401, whatever their credentials."""
    busy: int = 0
    """So many requests to the API are answered with 429 and no `Retry-After`, as by the limit of requests of
    dCache 11.2; no channel left looks the same."""
    stream_status: int = 0
    """Every event stream is answered so, as by a proxy before dCache; 0: by dCache."""
    comments_every_seconds: float = 0.0
    """A comment is sent on every stream so often, as by a proxy that keeps connections alive; 0: never."""
    ignores_offset: bool = False
    """A listing begins at its first entry, whatever it was asked for."""
    no_location: bool = False
    """Subscriptions are answered without their `Location`."""
    drop_after: int | None = None
    """After so many more inotify events the stream that carried the last of them is cut, once."""
    moved_to_first: bool | None = None
    """Whether IN_MOVED_TO comes before IN_MOVED_FROM. None: the dice decide."""

    def update(self, document: Any) -> None:
        """Take what `PUT /sandbox/faults` carries; ValueError when it is something else."""
        if not isinstance(document, dict) or not {one.name for one in fields(self)}.issuperset(document):
            raise ValueError(f"faults are an object with {', '.join(one.name for one in fields(self))}")
        for name, value in document.items():
            if not isinstance(value, bool | int | float | None):
                raise ValueError(  # noqa: TRY004 - the document is wrong, not the caller
                    f"{name} is a number or a truth value, not {value!r}"
                )
            setattr(self, name, value)
