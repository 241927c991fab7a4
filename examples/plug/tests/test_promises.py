"""The promises of a source, held by directories."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from oscar_bridge_folder import KIND

from bridge.testing import Bed, BridgePromises, SourcePromises, UnreadablePromises, opened, settle


class FolderBed(Bed):
    """A directory of one test."""

    kind = KIND

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def settings(self) -> dict[str, Any]:
        return {"type": "folder", "path": str(self.path)}

    async def put(self, count: int, first: int = 0) -> None:
        for n in range(first, first + count):
            hidden = self.path / f".{n}"
            hidden.write_text(f"leaf {n}")
            hidden.rename(self.path / str(n))

    async def left(self) -> int:
        return sum(entry.is_file() for entry in os.scandir(self.path))

    def number(self, data: bytes) -> int:
        return int(json.loads(data)["name"])

    async def poison(self) -> None:
        Path(os.fsdecode(os.fsencode(self.path) + b"/\xe9\x9f")).write_text("its name is not UTF-8")

    async def refuse(self, refusing: bool) -> None:
        away = self.path.with_name("away")
        if refusing:
            self.path.rename(away)
        else:
            away.rename(self.path)


@pytest.fixture
def bed(tmp_path: Path) -> FolderBed:
    return FolderBed(tmp_path / "inbox")


class TestSource(SourcePromises):
    """What a source promises by itself."""


class TestBridge(BridgePromises):
    """What it promises in a whole bridge."""


class TestUnreadable(UnreadablePromises):
    """What it promises of an item that it can't read."""


async def test_a_file_that_comes_while_the_directory_is_watched_is_given_at_once(bed: FolderBed) -> None:
    async with opened(bed.source()) as hands:
        await hands.takes_nothing(0.1)
        await bed.put(1)
        settle(await hands.take(1, timeout=5))
    await bed.leaves(0)
    assert (bed.path / "done" / "0").read_text() == "leaf 0"


async def test_a_file_that_is_put_again_while_it_is_in_hand_is_another_event(bed: FolderBed) -> None:
    await bed.put(1)
    async with opened(bed.source()) as hands:
        [first] = await hands.take(1)
        await bed.put(1)
        settle([first])
        [second] = await hands.take(1, timeout=5)
        assert second.event.id != first.event.id
        settle([second])
    await bed.leaves(0)
