"""One opening of a dCache: its parts are put together, and run until one of them can't go on."""

from __future__ import annotations

import asyncio

from bridge.core.errors import SourceLost, StoreError, root_cause
from bridge.core.ports import Slots
from bridge.sources.dcache.agenda import Agenda
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.departures import Departures
from bridge.sources.dcache.following import Follower
from bridge.sources.dcache.gaps import Gaps
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.listing.lister import Lister
from bridge.sources.dcache.lookups import Lookups
from bridge.sources.dcache.moves import Moves
from bridge.sources.dcache.progress import Progress
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.stream import Stream
from bridge.sources.dcache.watches import Watches

LOOKUPS = 16
"""Files looked up at once."""
_SAVE_SECONDS = 10.0
"""Between two times that the file beside the store is written."""


class Session:
    """Owns what was opened, from `run` to its end; the runner iterates `reader.batches`.

    Each part knows only those made before it. The folder's docstring draws how they hand on what they have.
    """

    def __init__(self, site: Site, slots: Slots) -> None:
        self.site = site
        self._log = site.log
        self.watches = Watches()
        self.moves = Moves()
        self.progress = Progress(site.position.listed or 0)
        self.lookups = Lookups(site, self.watches, self.moves, self.progress)
        self.reader = SpoolReader(
            site.spool, slots, self.lookups.resolve, site.metrics, site.log, concurrency=LOOKUPS
        )
        self.agenda = Agenda(site.scope, self.progress, recursive=site.config.recursive)
        self._departures = Departures(site, self.watches, self.moves, self.agenda)
        self._lister = Lister(site, self.watches, self.progress, self.agenda, self._departures, self.reader)
        gaps = Gaps(site, self.agenda)
        self._health = Health(site)
        stream = Stream(site, self.watches, self._departures, gaps, self._health, self.reader)
        self._follower = Follower(site, stream, self.watches, gaps, self._health, self.reader)

    async def run(self) -> None:
        """Read until cancelled, or until a part can't go on, which the runner hears from `batches`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.reader.run(), name="dcache hands out")
                tasks.create_task(self._lister.run(), name="dcache lists")
                tasks.create_task(self._follower.run(), name="dcache follows its stream")
                tasks.create_task(self._departures.run(), name="dcache ends watches")
                tasks.create_task(self._save(), name="dcache saves until when it heard")
        except* Exception as group:  # noqa: BLE001 - whatever it was, the runner must hear of it
            error = root_cause(group)
            if not isinstance(error, SourceLost):
                if not isinstance(error, StoreError):
                    self._log.error("dcache source failed", exc_info=error)
                error = SourceLost(str(error) or type(error).__name__)
            self.reader.batches.fail(error)

    def problems(self) -> list[str]:
        """Return what is wrong now."""
        trouble = [] if self._health.problem is None else [self._health.problem]
        return [*trouble, *self._lister.problems(), *self.reader.problems()]

    async def _save(self) -> None:
        """Save until when everything is kept. Not on the loop: the disk may be slow."""
        own = self.site.own
        saved = own.heard
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            if own.heard != saved:
                saved = own.heard
                await asyncio.to_thread(own.save)
