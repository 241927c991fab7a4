"""Spools against a model of them: batches whole or not at all, versions marked once, also after a crash."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from bridge.core.ports import Spooled
from bridge.store import Store
from bridge.store.spool import SourceSpool
from bridge.telemetry.metrics import Metrics

_T = TypeVar("_T")

KEYS = st.text(alphabet="abc", min_size=1, max_size=2)
SOURCES = st.sampled_from(["arrivals", "others"])
ALL = [bytes([n]) * 16 for n in range(8)]
VERSIONS = st.sets(st.sampled_from(ALL))


@dataclass
class Kept:
    """What one source's spool holds."""

    rows: list[tuple[str, bytes]] = field(default_factory=list)
    position: str | None = None
    listing: int = 0
    marks: dict[bytes, int] = field(default_factory=dict)
    """Versions, with the last listing that showed them."""


class TheSpools(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.state = Path(self.directory.name) / "0"
        self.appended = 0
        self.kept = {"arrivals": Kept(), "others": Kept()}
        self.earlier: list[dict[str, Kept]] = []
        """What a crash may bring back: `done` is not waited for."""
        self.open()

    def do(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(coroutine)

    def open(self) -> None:
        async def enter() -> None:
            self.metrics = Metrics(CollectorRegistry())
            self.context = Store.open(self.state, self.metrics)
            self.store = await self.context.__aenter__()

        self.do(enter())

    def close(self) -> None:
        self.do(self.context.__aexit__(None, None, None))

    @rule(source=SOURCES, keys=st.lists(KEYS, max_size=5), position=st.none() | st.sampled_from(["1", "2"]))
    def append(self, source: str, keys: list[str], position: str | None) -> None:
        kept = self.kept[source]
        batch = []
        for key in keys:
            self.appended += 1  # the data tell the first of a key from the others
            batch.append(Spooled(key=key, data=b"%d" % self.appended))
            if key not in dict(kept.rows):
                kept.rows.append((key, batch[-1].data))
        kept.position = position or kept.position
        self.do(self.store.spool(source).append(batch, position))
        self.earlier.clear()

    @rule(source=SOURCES, index=st.integers(0, 3), version=st.none() | st.sampled_from(ALL[:3]))
    def done(self, source: str, index: int, version: bytes | None) -> None:
        kept, spool = self.kept[source], self.store.spool(source)

        async def call() -> None:
            rows = await spool.oldest(without=(), limit=4)
            if index < len(rows):
                self.earlier.append(deepcopy(self.kept))
                spool.done(rows[index][0], version)
                del kept.rows[index]
                if version is not None:
                    kept.marks[version] = kept.listing

        self.do(call())

    @rule(source=SOURCES, versions=VERSIONS)
    def mark(self, source: str, versions: set[bytes]) -> None:
        kept = self.kept[source]
        self.do(self.store.spool(source).mark(versions, kept.listing))
        kept.marks.update(dict.fromkeys(versions, kept.listing))
        self._waited_for(versions)

    @rule(source=SOURCES, versions=VERSIONS)
    def show(self, source: str, versions: set[bytes]) -> None:
        kept = self.kept[source]
        self.do(self.store.spool(source).shown(versions, kept.listing))
        kept.marks.update(dict.fromkeys(versions & kept.marks.keys(), kept.listing))
        self._waited_for(versions)

    def _waited_for(self, versions: set[bytes]) -> None:
        if versions:  # else nothing was written
            self.earlier.clear()

    @rule(source=SOURCES)
    def begin_listing(self, source: str) -> None:
        self.kept[source].listing += 1
        assert self.do(self.store.spool(source).next_listing()) == self.kept[source].listing
        self.earlier.clear()

    @rule(source=SOURCES)
    def end_listing(self, source: str) -> None:
        kept = self.kept[source]
        left = {version: listing for version, listing in kept.marks.items() if listing >= kept.listing}
        assert self.do(self.store.spool(source).forget_unshown(kept.listing)) == len(kept.marks) - len(left)
        kept.marks = left
        self.earlier.clear()

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()
        self.earlier.clear()

    @rule()
    def crash(self) -> None:
        """Go on with the files as they are between two transactions: what a kill leaves."""
        after = self.state.with_name(str(int(self.state.name) + 1))
        with closing(sqlite3.connect(self.state / "events.sqlite3", isolation_level=None)) as held:
            held.execute("BEGIN IMMEDIATE")
            shutil.copytree(self.state, after, ignore=shutil.ignore_patterns("*-shm"))
        self.close()
        self.state = after
        self.open()
        found = {source: self.do(self._read(self.store.spool(source))) for source in self.kept}
        assert found in [*self.earlier, self.kept]
        self.kept = found
        self.earlier.clear()

    async def _read(self, spool: SourceSpool) -> Kept:
        rows = [(row.key, row.data) for _, row in await spool.oldest(without=(), limit=100)]
        with closing(sqlite3.connect(self.state / "events.sqlite3")) as connection:
            marks = dict(
                connection.execute("SELECT version, listing FROM entered WHERE spool = ?", (spool.number,))
            )
            (listing,) = connection.execute(
                "SELECT coalesce(max(listing), 0) FROM spools WHERE number = ?", (spool.number,)
            ).fetchone()
        assert len(marks) == spool.remembered
        return Kept(rows, await spool.position(), listing, marks)

    @invariant()
    def everything_is_where_it_belongs(self) -> None:
        for source, kept in self.kept.items():
            spool = self.store.spool(source)
            numbered = self.do(spool.oldest(without=(), limit=100))
            assert [(row.key, row.data) for _, row in numbered] == kept.rows
            assert [number for number, _ in numbered] == sorted(number for number, _ in numbered)
            assert spool.waiting == len(kept.rows)
            assert self.do(spool.position()) == kept.position
            assert self.do(spool.entered(ALL)) == kept.marks.keys()

    def teardown(self) -> None:
        self.close()
        for source, kept in self.kept.items():
            self.open()
            assert self.do(self._read(self.store.spool(source))) == kept
            told = self.metrics.registry.get_sample_value(
                "bridge_kept_events", {"service": "", "reason": "spooled"}
            )
            assert (told or 0) == sum(len(each.rows) for each in self.kept.values())
            self.close()
        self.runner.close()
        self.directory.cleanup()


TestTheSpools = TheSpools.TestCase
TestTheSpools.settings = settings(
    max_examples=15, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
