"""A damaged file: what is readable is saved, what is lost is told, and nobody goes on unasked. Upgrades."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.core.errors import StoreError
from bridge.store import Filter, Store, migrations, orders, read_dead_letters, salvage
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import child, event, letter, parked, parked_ids

PAGE = 4096


def fresh() -> Metrics:
    return Metrics(CollectorRegistry())


async def make(state_dir: Path, amount: int = 600, size: int = 700) -> None:
    """Keep `amount` events, each tenth of them a dead letter, some bigger than a page; numbered from 1."""
    async with Store.open(state_dir, fresh()) as store:
        await asyncio.gather(*(keep(store, number, size) for number in range(amount)))


async def keep(store: Store, number: int, size: int) -> None:
    repeated = b"%d" % number * (size * 10 if number % 50 == 7 else size)
    if number % 10:
        await store.park(event(str(number), data=repeated), "plants")
    else:
        await store.bury(letter(str(number), data=repeated))


def file_of(state_dir: Path) -> Path:
    return state_dir / "events.sqlite3"


def page_of(state_dir: Path, name: str, which: float) -> int:
    """Give the place in the file of a leaf page of the table or index `name`."""
    with closing(sqlite3.connect(file_of(state_dir))) as connection:
        pages = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", (name,)
        ).fetchall()
    return int((pages[int(len(pages) * which)][0] - 1) * PAGE)


def names(state_dir: Path) -> list[str]:
    return sorted(path.name for path in state_dir.iterdir())


def write(state_dir: Path, content: bytes) -> None:
    state_dir.mkdir(exist_ok=True)
    file_of(state_dir).write_bytes(content)


def overwrite(state_dir: Path, place: int, pages: int = 1) -> None:
    with file_of(state_dir).open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(pages * PAGE))


async def refused(state_dir: Path) -> str:
    with pytest.raises(StoreError, match="--accept-loss") as raised:
        async with Store.open(state_dir, fresh()):
            pass
    return str(raised.value)


async def accepted(state_dir: Path) -> list[int]:
    """Go on, and give the numbers of the events that are there; each is as it was kept."""
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        rows = await store.parked("plants", without=(), limit=10_000)
        for row in rows:
            assert row.event.data == row.event.id.encode() * (len(row.event.data) // len(row.event.id))
            assert row.number == int(row.event.id) + 1
        dead = read_dead_letters(state_dir)
        await store.park(event("later"), "plants")
        assert store.waiting("plants") == len(rows) + 1
        return sorted([row.number for row in rows] + [row.number for row in dead])


async def test_a_damaged_page_of_events_loses_those_on_it_and_tells_their_number(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, "kept", 0.5))
    told = await refused(state_dir)
    assert await refused(state_dir) == told
    kept = await accepted(state_dir)
    lost = sorted(set(range(1, 601)) - set(kept))
    assert 1 <= len(lost) <= 10
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert f"{len(kept)} events were saved, {len(lost)} are known to be lost;" in told
    assert capsys.readouterr().out.count("loss accepted") == 1
    async with Store.open(state_dir, fresh()) as store:  # it is not asked again
        assert store.waiting("plants") > 500
    files = names(state_dir)
    (aside,) = (state_dir / name for name in files if "damaged" in name)
    assert str(aside) in told
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(state_dir).stat().st_mode) == 0o600
    assert files == sorted(["events.sqlite3", "lock", aside.name])


@pytest.mark.parametrize("name", ["kept_by_reason", "sqlite_autoindex_kept_1", "dead_by_number"])
async def test_a_damaged_index_loses_nothing(state_dir: Path, name: str) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, name, 0.5))
    assert "600 events were saved, 0 are known to be lost;" in await refused(state_dir)
    assert await accepted(state_dir) == list(range(1, 601))


async def test_pages_damaged_in_many_places_lose_no_more_than_what_is_on_them(state_dir: Path) -> None:
    await make(state_dir)
    size = file_of(state_dir).stat().st_size // PAGE
    for page in random.sample(range(12, size), 8):
        overwrite(state_dir, page * PAGE)
    told = await refused(state_dir)
    kept = await accepted(state_dir)
    assert len(kept) > 400
    assert f"{len(kept)} events were saved" in told


async def test_a_truncated_file_loses_its_end_and_tells_how_much_is_known(state_dir: Path) -> None:
    await make(state_dir)
    os.truncate(file_of(state_dir), file_of(state_dir).stat().st_size // 2 // PAGE * PAGE)
    told = await refused(state_dir)
    kept = await accepted(state_dir)
    assert 100 < len(kept) < 500
    assert f"{len(kept)} events were saved" in told
    async with Store.open(state_dir, fresh()) as store:
        *_, last = await parked(store)
        assert (last.event.id, last.number) == ("later", 601)  # no number is given twice


async def test_what_is_no_database_is_moved_aside(state_dir: Path) -> None:
    write(state_dir, b"not a database, but long enough to be looked at" * 100)
    told = await refused(state_dir)
    assert "file is not a database" in told
    assert "0 events were saved, 0 are known to be lost, and how many more can't be told" in told
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        await store.park(event(), "plants")


async def test_damage_after_damage_is_told_with_the_one_before(state_dir: Path) -> None:
    await make(state_dir)
    overwrite(state_dir, page_of(state_dir, "kept", 0.2))
    first = await refused(state_dir)
    await asyncio.sleep(1.1)  # the name of what is moved aside has seconds
    overwrite(state_dir, page_of(state_dir, "kept", 0.8))
    second = await refused(state_dir)
    assert first.partition(". Start")[0] in second
    assert second.count("the store was damaged") == 2
    assert len([name for name in names(state_dir) if "damaged" in name]) == 2
    await accepted(state_dir)


async def test_a_crash_anywhere_in_a_salvage_is_made_good(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step fails: the next starts refuse, and all that was readable is there at the end."""
    await make(state_dir, 100)
    overwrite(state_dir, page_of(state_dir, "kept", 0.5))
    real, failures = Path.rename, 0
    for step in range(10):
        calls = 0

        def rename(self: Path, target: Path, step: int = step) -> Path:
            nonlocal calls, failures
            calls += 1
            if calls > step:
                failures += 1
                raise OSError(5, "the machine stopped here")
            return real(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            patched.setattr(Path, "replace", rename)
            with pytest.raises(StoreError):
                async with Store.open(state_dir, fresh()):
                    pass
        if calls <= step:
            break
    assert failures >= 3
    assert "events were saved" in await refused(state_dir)
    assert len(await accepted(state_dir)) >= 85


async def test_damage_found_in_use_is_told_and_looked_for_at_the_next_start(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(state_dir)
    place = page_of(state_dir, "kept", 0.0)
    monkeypatch.setattr(salvage, "_CHECK_SECONDS", 0.0)  # as if the file were too big to be looked through
    async with Store.open(state_dir, fresh()) as store:
        overwrite(state_dir, place)
        with pytest.raises(StoreError, match="malformed"):
            await store.parked("plants", without=(), limit=1000)
        assert "malformed" in store.problems()[0]
    assert "events were saved" in await refused(state_dir)


async def test_a_row_that_is_not_what_was_written_is_told_not_given_and_left_out_at_the_next_start(
    state_dir: Path,
) -> None:
    async with Store.open(state_dir, fresh()) as store:
        await store.park(event(), "plants")
        with closing(sqlite3.connect(file_of(state_dir))) as connection, connection:
            connection.execute("UPDATE kept SET attributes = '{'")
        with pytest.raises(StoreError, match="holds no event"):
            await store.parked("plants", without=(), limit=10)
        with closing(sqlite3.connect(file_of(state_dir))) as connection, connection:
            connection.execute("UPDATE kept SET attributes = CAST(x'ff' AS TEXT)")
        with pytest.raises(StoreError, match="never written"):
            await store.parked("plants", without=(), limit=10)
    assert "0 events were saved, 1 are known to be lost;" in await refused(state_dir)


async def test_a_lost_first_page_loses_no_event(state_dir: Path) -> None:
    await make(state_dir)
    overwrite(state_dir, 0)
    told = await refused(state_dir)
    assert "600 events were saved, 0 are known to be lost, and how many more can't be told" in told
    assert await accepted(state_dir) == list(range(1, 601))


async def test_deleted_events_do_not_come_back_with_a_salvage(state_dir: Path) -> None:
    await make(state_dir)
    async with Store.open(state_dir, fresh()) as store:
        for row in await store.parked("plants", without=(), limit=400):
            if row.number % 7:
                store.forget(row.number)
        before = {row.number for row in await store.parked("plants", without=(), limit=1000)}
        before |= {row.number for row in read_dead_letters(state_dir)}
    overwrite(state_dir, page_of(state_dir, "kept", 0.9))
    await refused(state_dir)
    assert set(await accepted(state_dir)) <= before


def test_a_kill_inside_a_transaction_leaves_what_was_before_it(tmp_path: Path) -> None:
    process = child(
        """
        import time
        async def main():
            async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())) as store:
                await store.park(event("1"), "plants")
                def half(connection):
                    connection.execute("UPDATE kept SET reason = 'dead', cause = 'half'")
                    connection.execute("PRAGMA cache_size = 0")
                    connection.execute("INSERT INTO generations SELECT value, '', '', 1, 1 "
                                       "FROM json_each(?)", [str(list(range(10_000)))])
                    os.write(1, b"now\\n")
                    time.sleep(60)
                await store.write(half)
        asyncio.run(main())
        """,
        str(tmp_path),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()

    async def look() -> None:
        async with Store.open(tmp_path, fresh()) as store:
            assert await parked_ids(store) == ["1"]

    asyncio.run(look())


# Upgrades


def version_1(state_dir: Path) -> None:
    """Make a store as the first release did, its SQL word for word."""
    state_dir.mkdir(mode=0o700)
    with closing(sqlite3.connect(file_of(state_dir), isolation_level=None)) as connection:
        connection.executescript(
            """
            PRAGMA journal_mode = WAL;
            BEGIN;
            CREATE TABLE kept (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                source TEXT NOT NULL,
                id TEXT NOT NULL,
                service TEXT NOT NULL,
                type TEXT NOT NULL,
                subject TEXT,
                time TEXT,
                attributes TEXT NOT NULL,
                data BLOB NOT NULL,
                reason TEXT NOT NULL,
                cause TEXT NOT NULL,
                detail TEXT NOT NULL,
                status INTEGER,
                attempts INTEGER NOT NULL,
                first_attempt REAL,
                last_attempt REAL,
                kept_at REAL NOT NULL,
                UNIQUE (source, id, service)
            ) STRICT;
            CREATE INDEX kept_by_reason ON kept (reason, service, cause, number);
            PRAGMA user_version = 1;
            COMMIT;
            """
        )
        connection.executemany(
            "INSERT INTO kept (source, id, service, type, attributes, data, reason, cause, detail, attempts, "
            "kept_at) VALUES ('uploads', ?, 'plants', 't', '{\"a\": \"b\"}', ?, 'dead', 'gave_up', '', 3, ?)",
            [(str(number), b"%d" % number * 500, 2e9) for number in range(200)],
        )


async def test_a_store_of_version_1_is_upgraded_with_all_that_is_in_it(
    state_dir: Path, metrics: Metrics
) -> None:
    version_1(state_dir)
    with pytest.raises(StoreError, match=r"version 1 .* reads version 8"):
        read_dead_letters(state_dir)
    async with Store.open(state_dir, metrics) as store:
        letters = read_dead_letters(state_dir)
        assert [row.event_id for row in letters] == [str(n) for n in reversed(range(200))]
        assert (await orders.replay(store, Filter(numbers=[1, 2]), as_new=True)).changed == 2
        first, second = await parked(store)
        assert (first.event.id, second.event.id, first.number) == ("0+1", "1+1", 1)
        assert (first.event.data, first.event.attributes) == (b"0" * 500, {"a": "b"})
    with (
        closing(sqlite3.connect(file_of(state_dir))) as upgraded,
        closing(sqlite3.connect(":memory:")) as new,
    ):
        migrations.upgrade(new)
        tables = "SELECT name, replace(sql, ' ', '') FROM sqlite_schema ORDER BY name"
        assert upgraded.execute(tables).fetchall() == new.execute(tables).fetchall()


async def test_an_upgrade_that_fails_leaves_the_old_store(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(state_dir)
    with monkeypatch.context() as patched:
        broken = (*migrations.MIGRATIONS[:-1], "".join([migrations.MIGRATIONS[-1], "DELETE FROM none;"]))
        patched.setattr(migrations, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="no such table: none"):
            async with Store.open(state_dir, metrics):
                pass
    with closing(sqlite3.connect(file_of(state_dir))) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    async with Store.open(state_dir, metrics):
        assert len(read_dead_letters(state_dir)) == 200


async def test_a_damaged_store_of_version_1_is_salvaged_and_upgraded(state_dir: Path) -> None:
    version_1(state_dir)
    overwrite(state_dir, page_of(state_dir, "kept", 0.5))
    assert "events were saved" in await refused(state_dir)
    async with Store.open(state_dir, fresh(), accept_loss=True):
        assert 180 < len(read_dead_letters(state_dir)) < 200


async def test_two_processes_can_not_own_the_store_and_the_second_can_read(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter())
        process = child(
            """
            async def main():
                print(len(read_dead_letters(Path(arguments[0]))))
                try:
                    async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())):
                        print("opened")
                except StoreLockedError as error:
                    print(error)
            asyncio.run(main())
            """,
            str(state_dir),
        )
        out, _ = await asyncio.to_thread(process.communicate, timeout=30)
        assert out.splitlines()[0] == "1"
        assert f"in use by another bridge, process {os.getpid()}" in out
        await until(lambda: store.problems() == [])
