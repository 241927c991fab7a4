"""A directory as a queue: what is in it is not settled yet, and inotify tells when to look."""

import asyncio
import heapq
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from asyncinotify import Inotify, Mask

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost, reason
from bridge.core.event import Event
from bridge.core.ports import Slots
from bridge.sources.handover import Handover
from bridge.sources.reading import lost_with, reading
from bridge.telemetry.metrics import SourceMetrics
from oscar_bridge_folder.config import FolderConfig

log = structlog.get_logger(__name__)
GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
Version = tuple[int, int]
"""Tells a file from others that have had its name: when it changed last, in ns, and its inode."""


class Folder:
    """One `type: folder` of the configuration (`bridge.core.ports.Source`)."""

    def __init__(self, config: FolderConfig, key: str, metrics: SourceMetrics) -> None:
        self.path, self.done = config.path, config.path / "done"
        self.identity, self.metrics = config.identity or key, metrics

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Watch the directory, then look into it: nothing comes unseen between the two."""
        with Inotify() as inotify:
            try:
                self.done.mkdir(exist_ok=True)
                inotify.add_watch(self.path, GONE | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.ONLYDIR)
            except OSError as error:
                raise SourceLost(reason(error)) from error
            async with reading(Reader(self, inotify, slots), "folder") as batches:
                yield batches

    def problems(self) -> Sequence[str]:
        """Tell nothing: a directory with which something is wrong is lost."""
        return ()


class Reader:
    """One opening of it: hands over what is there, and moves away what is settled."""

    def __init__(self, folder: Folder, inotify: Inotify, slots: Slots) -> None:
        self.batches = Handover()
        self._folder, self._inotify, self._slots = folder, inotify, slots
        self._in_hand: dict[str, Delivery] = {}  # by name, until its file is moved
        self._settled: dict[str, Version] = {}
        self._some_settled, self._look = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled, or until the directory is lost; then give back what is in hand."""
        try:
            guard = lost_with(self.batches, "folder failed", log, release=self._release, expected=(OSError,))
            async with guard as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._hand_over())
                tasks.create_task(self._answer())
        finally:
            self._release()
            with suppress(OSError):  # it will come again, with the same id
                await self._move()

    async def _watch(self) -> None:
        async for event in self._inotify:
            if event.mask & GONE:
                raise SourceLost(f"{self._folder.path} was moved, removed or unmounted")
            self._look.set()

    async def _hand_over(self) -> None:
        while True:
            await self._look.wait()
            await self.batches.emptied()
            await self._slots.wait()
            await asyncio.sleep(0.02)  # what comes within such a time is looked for together
            self._look.clear()
            files = self._files({self._folder.done.name, *self._in_hand})
            found = await asyncio.to_thread(heapq.nsmallest, self._slots.free, files)
            batch = {name: self._delivery(name, version) for version, name in found[: self._slots.free]}
            self._in_hand |= batch
            if batch:
                self.batches.put([*batch.values()])
            if batch or not self._slots.free:
                self._look.set()  # there may be more

    def _files(self, others: set[str]) -> Iterator[tuple[Version, str]]:
        with os.scandir(self._folder.path) as entries:
            for entry in entries:
                if entry.name not in others and entry.name[0] != "." and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # it has just left
                        yield version_of(entry.stat(follow_symlinks=False)), entry.name

    def _delivery(self, name: str, version: Version) -> Delivery:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        event = Event(
            id=f"{shown}/{version[1]}@{version[0]}",
            source=self._folder.identity,
            type="folder.file",
            subject=shown,
            time=version[0] / 1e9,
            data=json.dumps({"name": shown, "path": str(self._folder.done / shown)}).encode(),
        )
        fault = None if shown == name else "its name is not UTF-8"
        return Delivery(event, lambda _, outcome: self._heed(name, version, outcome), fault=fault)

    def _heed(self, name: str, version: Version, outcome: Outcome) -> None:
        if outcome is Outcome.RELEASED:
            del self._in_hand[name]
            self._look.set()
        else:
            self._settled[name] = version
            self._some_settled.set()

    async def _answer(self) -> None:
        while True:
            await self._move()
            await self._some_settled.wait()
            self._some_settled.clear()

    async def _move(self) -> None:
        self._folder.done.mkdir(exist_ok=True)
        for name, version in list(self._settled.items()):
            path = self._folder.path / name
            with suppress(FileNotFoundError):  # somebody took it away
                if version_of(path.stat(follow_symlinks=False)) == version:
                    path.rename(self._folder.done / name)
            del self._settled[name], self._in_hand[name]
            self._folder.metrics.committed()
            await asyncio.sleep(0)  # others have their turn
        self._look.set()  # at first; and under these names others may have come

    def _release(self) -> None:
        self.batches.withdraw()
        for delivery in list(self._in_hand.values()):
            delivery.settle(Outcome.RELEASED)


def version_of(status: os.stat_result) -> Version:
    """Return what of a file's status is its version."""
    return status.st_mtime_ns, status.st_ino
