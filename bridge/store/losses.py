"""What upstreams had lost before it was read, and nobody has acknowledged; kept over restarts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bridge.store.clock import date
from bridge.store.directory import parsed, replace

FILE = "losses.json"

_MOST_TOLD = 5
"""Places named in one message."""

_Time = Annotated[float, Field(ge=0, lt=253402300800.0)]  # before the year 10000: what is beyond is no time


@dataclass(frozen=True, slots=True)
class Loss:
    """What is lost of one place of a source."""

    source: str
    """Its key in the configuration, as it was then."""
    place: str
    """Where, in the upstream's words: `TOPIC/PARTITION`."""
    events: int
    """How many, at least."""
    first: _Time
    """When the first of them were missed, in seconds since 1970."""
    last: _Time
    """Likewise the last of them."""


_document = TypeAdapter(dict[Literal["losses"], list[Loss]])


def sentences(losses: Iterable[Loss]) -> dict[str, str]:
    """Return the losses of each source in a sentence, by the source's key."""
    by_source = attrgetter("source")
    return {
        source: _sentence(sorted(of_source, key=attrgetter("place")))
        for source, of_source in groupby(sorted(losses, key=by_source), by_source)
    }


def _sentence(losses: list[Loss]) -> str:
    events = sum(loss.events for loss in losses)
    places = [f"{loss.place} ({loss.events})" for loss in losses[:_MOST_TOLD]]
    if len(losses) > _MOST_TOLD:
        places.append(f"{len(losses) - _MOST_TOLD} more")
    first, last = date(min(loss.first for loss in losses)), date(max(loss.last for loss in losses))
    return (
        f"{events} or more events were lost upstream before they were read, "
        f"{first if first == last else f'{first} to {last}'}: {', '.join(places)}"
    )


def remedy(source: str) -> str:
    """Return what a person does about the losses of `source`."""
    return f"once you have seen it: `oscar-bridge acknowledge source {source}`"


def read(state_dir: Path) -> list[Loss]:
    """Return those kept in `state_dir`; none where there is no file. Raises StoreError when it is damaged."""
    told = "it has the losses that nobody has acknowledged; look at it, and remove it to go on without"
    return parsed(state_dir / FILE, lambda document: _document.validate_json(document)["losses"], told)


def write(state_dir: Path, losses: Collection[Loss]) -> None:
    """Keep `losses` alone, all or, if that fails, none of the change. Raises StoreError."""
    text = json.dumps({"losses": [asdict(each) for each in losses]}, indent=1)
    replace(state_dir / FILE, text + "\n")
