"""What is saved of a damaged store's spools, and what is told of the rest. The upgrade that makes spools."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bridge.core.ports import Spooled
from bridge.store import Filter, Store, migrations, orders, read_dead_letters
from bridge.store.spool import SourceSpool
from bridge.telemetry.metrics import Metrics
from tests.store.events import parked_ids
from tests.store.test_damage import file_of, fresh, overwrite, page_of, refused, version_1
from tests.store.test_spool import digests

ROWS, MARKS = 300, 3000


async def make(state_dir: Path) -> None:
    """Spool some, with a position and marks of two listings."""
    async with Store.open(state_dir, fresh()) as store:
        for source in ("arrivals", "others"):
            spool = store.spool(source)
            await spool.append(
                [Spooled(key=f"{source}-{n}", data=b"%d" % n * 300) for n in range(ROWS)], f"{source} at 7"
            )
            for _ in range(3):
                listing = await spool.next_listing()
            await spool.mark(digests(range(MARKS)), listing)


async def kept(spool: SourceSpool) -> list[int]:
    """Give which are there, each as it was."""
    rows = await spool.oldest(without=(), limit=10_000)
    found = [int(row.key.rpartition("-")[2]) for _, row in rows]
    assert [row.data for _, row in rows] == [b"%d" % n * 300 for n in found]
    assert found == sorted(found)
    assert spool.waiting == len(found)
    return found


async def marked(spool: SourceSpool) -> int:
    count = len(await spool.entered(digests(range(MARKS))))
    assert spool.remembered == count
    return count


async def test_a_damaged_page_of_events_loses_occurrences_and_no_position_or_mark(state_dir: Path) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, "kept", 0.25))
    told = await refused(state_dir)
    assert "position" not in told
    assert "entered" not in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        arrivals, others = store.spool("arrivals"), store.spool("others")
        left = len(await kept(arrivals)) + len(await kept(others))
        assert 2 * ROWS - 30 < left < 2 * ROWS
        assert f"{left} events were saved, {2 * ROWS - left} are known to be lost" in told
        assert (await arrivals.position(), await others.position()) == ("arrivals at 7", "others at 7")
        assert (await marked(arrivals), await marked(others)) == (MARKS, MARKS)
        assert await arrivals.next_listing() == 4


async def test_a_damaged_page_of_marks_forgets_those_on_it_and_tells_how_many(state_dir: Path) -> None:
    await make(state_dir)
    for place in (0.1, 0.3, 0.7):  # what lies between is read from the bare pages
        overwrite(state_dir, page_of(state_dir, "entered", place))
    told = await refused(state_dir)
    assert "position" not in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        arrivals, others = store.spool("arrivals"), store.spool("others")
        left = await marked(arrivals) + await marked(others)
        assert 2 * MARKS - 600 < left < 2 * MARKS
        assert f"versions that had entered are forgotten ({2 * MARKS - left})" in told
        assert f"{2 * ROWS} events were saved, 0 are known to be lost" in told
        assert (len(await kept(arrivals)), len(await kept(others))) == (ROWS, ROWS)
        assert await arrivals.forget_unshown(3) == 0
        before = arrivals.remembered
        assert await arrivals.forget_unshown(4) == before


async def test_a_damaged_page_of_positions_is_told_and_listings_go_on_from_the_marks(state_dir: Path) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, "spools", 0))
    told = await refused(state_dir)
    assert "the position of a stream is lost" in told
    assert "entered" not in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        arrivals = store.spool("arrivals")
        assert await arrivals.position() is None
        assert (len(await kept(arrivals)), await marked(arrivals)) == (ROWS, MARKS)
        listing = await arrivals.next_listing()
        assert listing == 4
        assert await arrivals.forget_unshown(listing) == MARKS
        assert (arrivals.remembered, store.spool("others").remembered) == (0, MARKS)


async def test_a_lost_first_page_loses_no_occurrence_position_or_mark(state_dir: Path) -> None:
    await make(state_dir)
    overwrite(state_dir, 0)
    told = await refused(state_dir)
    assert "position" not in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        for source in ("arrivals", "others"):
            spool = store.spool(source)
            assert await kept(spool) == list(range(ROWS))
            assert await spool.position() == f"{source} at 7"
            assert await marked(spool) == MARKS


@pytest.mark.parametrize("name", ["spooled_by_source", "kept_by_reason"])
async def test_a_damaged_index_loses_nothing_that_is_spooled(state_dir: Path, name: str) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, name, 0.5))
    assert f"{2 * ROWS} events were saved, 0 are known to be lost; the damaged" in await refused(state_dir)
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        assert await kept(store.spool("others")) == list(range(ROWS))


def version_2(state_dir: Path) -> None:
    """Make a store as the second release did, its SQL word for word."""
    version_1(state_dir)
    with closing(sqlite3.connect(file_of(state_dir), isolation_level=None)) as connection:
        connection.executescript(
            """
            BEGIN;
            DROP INDEX kept_by_reason;
            CREATE INDEX kept_by_reason ON kept (reason, service, number);
            CREATE INDEX dead_by_number ON kept (number, service, cause) WHERE reason = 'dead';
            CREATE INDEX dead_by_age ON kept (kept_at) WHERE reason = 'dead';
            ALTER TABLE kept ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
            CREATE TABLE generations (
                source TEXT NOT NULL,
                id TEXT NOT NULL,
                service TEXT NOT NULL,
                generation INTEGER NOT NULL,
                given_at REAL NOT NULL,
                PRIMARY KEY (source, id, service)
            ) STRICT, WITHOUT ROWID;
            UPDATE kept SET reason = 'parked', cause = '' WHERE number <= 2;
            UPDATE kept SET id = 'x+3', generation = 3 WHERE number = 3;
            INSERT INTO generations VALUES ('uploads', 'x', 'plants', 3, 2e9);
            PRAGMA user_version = 2;
            COMMIT;
            """
        )


async def test_a_store_of_version_2_is_upgraded_with_all_that_is_in_it(
    state_dir: Path, metrics: Metrics
) -> None:
    version_2(state_dir)
    async with Store.open(state_dir, metrics) as store:
        assert await parked_ids(store) == ["0", "1"]
        letters = read_dead_letters(state_dir)
        assert [row.event_id for row in letters] == [*(str(n) for n in reversed(range(3, 200))), "x+3"]
        assert (await orders.replay(store, Filter(numbers=[3]), as_new=True)).changed == 1
        assert await parked_ids(store) == ["0", "1", "x+4"]
        spool = store.spool("uploads")
        assert (spool.waiting, await spool.position(), spool.remembered) == (0, None, 0)
        await spool.append([Spooled(key="1", data=b"")], "1")
        assert await spool.position() == "1"
    with (
        closing(sqlite3.connect(file_of(state_dir))) as upgraded,
        closing(sqlite3.connect(":memory:")) as new,
    ):
        migrations.upgrade(new)
        tables = "SELECT name, replace(sql, ' ', '') FROM sqlite_schema ORDER BY name"
        assert upgraded.execute(tables).fetchall() == new.execute(tables).fetchall()


async def test_a_damaged_store_of_version_2_is_salvaged_and_upgraded(state_dir: Path) -> None:
    version_2(state_dir)
    overwrite(state_dir, page_of(state_dir, "kept", 0.5))
    told = await refused(state_dir)
    assert "events were saved" in told
    assert "position" not in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        assert 170 < len(read_dead_letters(state_dir)) < 198
        await store.spool("uploads").append([Spooled(key="1", data=b"")], "1")
