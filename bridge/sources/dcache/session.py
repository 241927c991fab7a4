"""One opening of a dCache: its parts are put together, and run until one of them can't go on."""

from __future__ import annotations

import asyncio

from bridge.core.errors import StoreError
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
from bridge.sources.handover import Handover
from bridge.sources.reading import lost_with

LOOKUPS = 16
"""Files looked up at once."""
_SAVE_SECONDS = 10.0
"""Between two times that the file beside the store is written."""


class Session:
    """Owns what was opened, from `run` to its end; the runner iterates `batches`.

    Each part knows only those made before it. The folder's docstring draws how they hand on what they have.
    """

    def __init__(self, site: Site, slots: Slots) -> None:
        self.site = site
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

    @property
    def batches(self) -> Handover:
        """What the runner iterates."""
        return self.reader.batches

    async def run(self) -> None:
        """Read until cancelled, or until a part can't go on, which the runner hears from `batches`."""
        async with lost_with(
            self.batches,
            "dcache source failed",
            self.site.log,
            release=self.reader.release,
            expected=(StoreError,),
        ) as tasks:
            tasks.create_task(self.reader.run(), name="dcache hands out")
            tasks.create_task(self._lister.run(), name="dcache lists")
            tasks.create_task(self._follower.run(), name="dcache follows its stream")
            tasks.create_task(self._departures.run(), name="dcache ends watches")
            tasks.create_task(self._save(), name="dcache saves until when it heard")

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
