"""The store: what `bury` returned for is on disk, whatever happens next."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.core.errors import StoreError, StoreLockedError
from bridge.core.event import Event
from bridge.core.ports import DeadLetter
from bridge.store import Store, read_dead_letter, read_dead_letters, schema
from bridge.store.directory import file_system_type
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import child, letter, needs_mounts, value

# What is kept


async def test_a_buried_letter_comes_back_as_it_was(state_dir: Path, metrics: Metrics) -> None:
    event = Event(
        id="broken \udcff text\0",
        source="uploads",
        type="org.example.put",
        subject="a/ö.nc",
        time=datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
        data=bytes(range(256)),
        attributes={"partition": "3", "key": "\udcfe"},
    )
    buried = DeadLetter(
        event=event,
        service="plants",
        cause="http_413",
        detail="413: too large",
        status=413,
        attempts=3,
        first_attempt=1000.5,
        last_attempt=1010.25,
    )
    async with Store.open(state_dir, metrics) as store:
        await store.bury(buried)
    (row,) = read_dead_letters(state_dir)
    found = read_dead_letter(state_dir, row.number)
    assert found is not None
    assert found == (row, event)
    assert (row.service, row.cause, row.detail) == ("plants", "http_413", "413: too large")
    assert (row.status, row.attempts, row.first_attempt, row.last_attempt) == (413, 3, 1000.5, 1010.25)
    assert row.size == 256
    assert abs(row.kept_at - time.time()) < 60


async def test_an_event_without_time_or_subject_comes_back_without(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter(data=b""))
    found = read_dead_letter(state_dir, 1)
    assert found is not None
    assert (found[1].time, found[1].subject, found[1].data) == (None, None, b"")


async def test_burying_an_event_again_is_one_row_with_the_newest_cause_and_the_first_attempt(
    state_dir: Path, metrics: Metrics
) -> None:
    def attempt(cause: str, first: float | None, last: float | None, attempts: int) -> DeadLetter:
        return DeadLetter(
            event=letter().event,
            service="plants",
            cause=cause,
            detail=cause,
            attempts=attempts,
            first_attempt=first,
            last_attempt=last,
        )

    async with Store.open(state_dir, metrics) as store:
        await store.bury(attempt("http_500", 10.0, 20.0, 2))
        (before,) = read_dead_letters(state_dir)
        await store.bury(attempt("too_large", 30.0, 40.0, 5))
        await store.bury(attempt("gave_up", None, None, 6))
        (after,) = read_dead_letters(state_dir)
        assert value(metrics, "bridge_dead_letters", service="plants", cause="http_500") == 0
        assert value(metrics, "bridge_dead_letters", service="plants", cause="gave_up") == 1
    assert after.number == before.number
    assert (after.cause, after.detail, after.attempts) == ("gave_up", "gave_up", 6)
    assert (after.first_attempt, after.last_attempt) == (10.0, 40.0)


async def test_one_event_is_a_row_for_each_of_its_services(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for service in ("plants", "flood", ""):
            await store.bury(letter(service=service))
    assert {row.service for row in read_dead_letters(state_dir)} == {"plants", "flood", ""}


async def test_the_same_letter_twice_in_one_group_is_counted_once(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter("7")) for _ in range(20)))
        assert len(read_dead_letters(state_dir)) == 1
        assert value(metrics, "bridge_dead_letters", service="plants", cause="too_large") == 1


async def test_counts_and_bytes_are_told_again_after_a_restart(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter(str(n))) for n in range(5)))
        await store.bury(letter("x", cause="route", service=""))
    again = Metrics(CollectorRegistry())
    async with Store.open(state_dir, again):
        assert value(again, "bridge_dead_letters", service="plants", cause="too_large") == 5
        assert value(again, "bridge_dead_letters", service="", cause="route") == 1
        size = value(again, "bridge_store_bytes")
        assert size is not None
        assert size >= (state_dir / "events.sqlite3").stat().st_size > 0


# Reading


async def test_a_list_is_the_newest_first_and_filtered(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(4):
            await store.bury(letter(str(number), service="plants" if number % 2 else "flood"))
        await store.bury(letter("4", cause="gave_up"))
        assert [row.event_id for row in read_dead_letters(state_dir)] == ["4", "3", "2", "1", "0"]
        assert [row.event_id for row in read_dead_letters(state_dir, limit=2)] == ["4", "3"]
        assert [row.event_id for row in read_dead_letters(state_dir, service="flood")] == ["2", "0"]
        assert [row.event_id for row in read_dead_letters(state_dir, "plants", "gave_up")] == ["4"]
        assert read_dead_letters(state_dir, cause="nothing") == []
        assert read_dead_letter(state_dir, 99) is None


async def test_reading_goes_on_beside_a_writing_daemon(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("first"))
        writing = asyncio.gather(*(store.bury(letter(str(n), data=b"x" * 1000)) for n in range(3000)))
        seen = 0
        while not writing.done():
            rows = await asyncio.to_thread(read_dead_letters, state_dir)
            assert len(rows) >= seen
            seen = len(rows)
        await writing
        assert len(read_dead_letters(state_dir)) == 3001


def test_where_no_store_is_reading_says_so(state_dir: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in"):
        read_dead_letters(state_dir)
    assert not state_dir.exists()


@pytest.fixture
def no_database(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "events.sqlite3").write_bytes(b"not a database, but long enough to be looked at" * 100)


@pytest.mark.usefixtures("no_database")
async def test_what_is_no_store_is_told_by_reader_and_daemon(state_dir: Path, metrics: Metrics) -> None:
    with pytest.raises(StoreError, match="file is not a database"):
        read_dead_letters(state_dir)
    with pytest.raises(StoreError, match="file is not a database"):
        async with Store.open(state_dir, metrics):
            pass


# The state directory


async def test_a_second_daemon_is_refused_and_told_who_has_it(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
            async with Store.open(state_dir, Metrics(CollectorRegistry())):
                pass
    async with Store.open(state_dir, Metrics(CollectorRegistry())):
        pass


def modes(state_dir: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state_dir, *state_dir.iterdir())}


async def test_everything_in_the_state_directory_is_for_its_user_alone(
    state_dir: Path, metrics: Metrics
) -> None:
    before = os.umask(0)
    try:
        async with Store.open(state_dir, metrics) as store:
            await store.bury(letter())
            found = modes(state_dir)
    finally:
        os.umask(before)
    files = ("lock", "events.sqlite3", "events.sqlite3-wal", "events.sqlite3-shm")
    assert found == {"state": 0o700, **dict.fromkeys(files, 0o600)}


async def test_a_file_that_others_could_read_is_closed_to_them(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics):
        pass
    (state_dir / "events.sqlite3").chmod(0o644)
    async with Store.open(state_dir, metrics):
        assert stat.S_IMODE((state_dir / "events.sqlite3").stat().st_mode) == 0o600


async def test_a_newer_store_is_left_alone_and_both_versions_are_told(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics):
        pass
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 41")
    with pytest.raises(StoreError, match=r"version 41 .* up to 8"):
        async with Store.open(state_dir, metrics):
            pass
    with pytest.raises(StoreError, match=r"version 41 .* version 8"):
        read_dead_letters(state_dir)


async def test_a_damaged_store_is_refused(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter(str(n), data=b"x" * 500)) for n in range(200)))
    with (state_dir / "events.sqlite3").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(8 * 4096))
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        async with Store.open(state_dir, metrics):
            pass


def test_a_read_only_state_directory_fails_the_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o500)
    wrap: tuple[str, ...] = ()
    if os.geteuid() == 0:  # whom no mode stops
        wrap = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o ro none {state} && exec "$@"', "sh")
        needs_mounts()
    process = child(
        """
        async def main():
            try:
                async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())):
                    print("opened")
            except StoreError as error:
                print(error)
        asyncio.run(main())
        """,
        str(state),
        wrap=wrap,
    )
    out, _ = process.communicate(timeout=30)
    assert "can't be used: " in out
    assert str(state) in out


async def test_a_state_directory_that_is_a_file_fails_the_start(tmp_path: Path, metrics: Metrics) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match="state directory"):
        async with Store.open(tmp_path / "state", metrics):
            pass


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /mnt/share rw shared:5 - nfs4 server:/x rw
31 22 0:41 / /mnt/share/local rw - xfs /dev/vdb rw
32 22 0:42 / /mnt/with\040space rw - fuse.sshfs me@host: rw
33 22 0:43 / /srv rw - cifs //host/share rw
34 33 0:44 / /srv rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/bridge", "ext4"),
        ("/mnt/share/state", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/state", "xfs"),
        ("/mnt/with space/state", "fuse.sshfs"),
        ("/srv/state", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount(path: str, kind: str) -> None:
    assert file_system_type(Path(path), MOUNTS) == kind


async def test_a_network_file_system_is_refused(
    state_dir: Path, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:0 / / rw - ext4 /dev/vda rw\n23 22 0:9 / {tmp_path} rw - nfs4 host:/x rw\n")
    monkeypatch.setattr("bridge.store.directory._MOUNTS", mounts)
    with pytest.raises(StoreError, match=r"network file system \(nfs4\)"):
        async with Store.open(state_dir, metrics):
            pass


# Durability and trouble


@pytest.mark.parametrize(
    "progress", [1, random.randint(2, 50), random.randint(51, 150)], ids=["at once", "early", "late"]
)
def test_every_bury_that_returned_survives_sigkill(tmp_path: Path, progress: int) -> None:
    state = tmp_path / "state"
    process = child(
        """
        payload = os.urandom(200_000)  # big, so that a group's commit takes its time
        async def worker(store, name):
            for number in range(100_000):
                await store.bury(letter(f"{name}-{number}", data=payload))
                os.write(1, f"{name}-{number}\\n".encode())
        async def main():
            async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())) as store:
                await asyncio.gather(*(worker(store, name) for name in range(16)))
        asyncio.run(main())
        """,
        str(state),
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(progress)]  # killed on progress
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.stdout.close()
    process.wait(30)
    acknowledged += rest[:-1]
    kept = {row.event_id for row in read_dead_letters(state)}  # by a reader, before any daemon repairs
    assert set(acknowledged) <= kept

    async def restart() -> None:
        async with Store.open(state, Metrics(CollectorRegistry())) as store:
            await store.bury(letter("after"))

    asyncio.run(restart())
    assert {row.event_id for row in read_dead_letters(state)} == kept | {"after"}


FILLING = """
    from bridge.testing import until
    async def main():
        async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())) as store:
            kept = []
            fill()
            try:
                for number in range(10_000):
                    await store.bury(letter(str(number), data=os.urandom(20_000)))
                    kept.append(str(number))
            except StoreError as error:
                print(error, store.problems(), sep="\\n")
            make_room()
            await store.bury(letter("later"))
            await until(lambda: not store.problems())
            rows = {row.event_id for row in read_dead_letters(Path(arguments[0]))}
            assert rows == {*kept, "later"}, rows
            assert kept
            print("all there")
    asyncio.run(main())
"""


def test_a_full_disk_is_told_and_the_store_goes_on_once_there_is_room(tmp_path: Path) -> None:
    needs_mounts()
    process = child(
        """
        ballast = Path(arguments[0]) / "ballast"
        def fill(): ballast.write_bytes(b"x" * 3_000_000)
        def make_room(): ballast.unlink()
        """,
        str(tmp_path),
        then=FILLING,
        wrap=("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=6m none {tmp_path} && exec "$@"', "sh"),
    )
    out, _ = process.communicate(timeout=60)
    told, problems, end = out.splitlines()
    assert "has a disk that is nearly full" in told
    assert told in problems
    assert end == "all there"
    assert process.returncode == 0


def test_a_write_error_is_told_and_the_store_goes_on_once_it_is_gone(tmp_path: Path) -> None:
    process = child(
        """
        def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        def make_room(): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        """,
        str(tmp_path / "state"),
        then=FILLING,
    )
    out, _ = process.communicate(timeout=60)
    told, problems, end = out.splitlines()
    assert "disk I/O error" in told
    assert told in problems
    assert end == "all there"


async def test_after_a_failed_fsync_nothing_is_written_behind_what_it_left(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def unsynced(connection: sqlite3.Connection) -> Iterator[None]:
        with transaction(connection):
            yield
        failed = sqlite3.OperationalError("disk I/O error")  # as SQLite says it: all is in the log by then
        failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise failed

    transaction = schema.transaction
    log = state_dir / "events.sqlite3-wal"
    async with Store.open(state_dir, metrics) as store:
        for number in range(20):
            await store.bury(letter(str(number)))
        before = log.stat().st_size
        monkeypatch.setattr(schema, "transaction", unsynced)
        # A reader keeps the log from being emptied by the closing of the writer's connection.
        with closing(sqlite3.connect(state_dir / "events.sqlite3", isolation_level=None)) as other:
            other.execute("SELECT * FROM kept").fetchall()
            with pytest.raises(StoreError, match="I/O error"):
                await store.bury(letter("20"))
            monkeypatch.undo()
            other.execute("BEGIN")
            other.execute("SELECT * FROM kept").fetchone()
            with pytest.raises(StoreError, match="its log is being read"):
                await store.bury(letter("20"))
            other.execute("ROLLBACK")
            await store.bury(letter("20"))
            assert log.stat().st_size < before / 2
        assert store.problems() == []
    assert len(read_dead_letters(state_dir)) == 21


async def test_a_store_that_was_removed_under_the_daemon_is_told(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("1"))
        moved = state_dir / "moved"
        (state_dir / "events.sqlite3").rename(moved)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.bury(letter("2"))
        assert len(store.problems()) == 1
        moved.rename(state_dir / "events.sqlite3")
        await store.bury(letter("3"))
        assert store.problems() == []
    assert [row.event_id for row in read_dead_letters(state_dir)] == ["3", "1"]


async def test_a_database_held_by_another_program_is_waited_for(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        connection = store._writer.file.connection
        assert connection is not None
        connection.execute("PRAGMA busy_timeout = 20")
        with closing(sqlite3.connect(state_dir / "events.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(store.bury(letter()))
            await until(store.problems)
            assert "locked" in store.problems()[0]
            assert not waiting.done()
            other.execute("ROLLBACK")
        await waiting
        assert store.problems() == []


# Waiting


async def test_a_cancelled_waiter_does_not_hurt_the_others(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        waiters = [asyncio.ensure_future(store.bury(letter(str(n)))) for n in range(500)]
        await asyncio.sleep(0)
        for waiter in waiters[::2]:
            waiter.cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert results[1::2] == [None] * 250
        await store.bury(letter("after"))
        kept = {row.event_id for row in read_dead_letters(state_dir)}
        assert {str(n) for n in range(1, 500, 2)} | {"after"} <= kept


async def test_leaving_the_store_writes_what_was_taken(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        waiters = [asyncio.ensure_future(store.bury(letter(str(n)))) for n in range(3000)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiters) == [None] * 3000
    assert len(read_dead_letters(state_dir)) == 3000
    assert not store._writer.thread.is_alive()
    with pytest.raises(StoreError, match="closed"):
        await store.bury(letter())


async def test_letters_that_wait_together_are_written_together(
    state_dir: Path, metrics: Metrics, transactions: list[None]
) -> None:
    amount = 5_000
    letters = [letter(str(n), data=b"x" * 1000) for n in range(amount)]
    async with Store.open(state_dir, metrics) as store:
        transactions.clear()
        async with asyncio.TaskGroup() as tasks:
            for each in letters:
                tasks.create_task(store.bury(each))
        assert len(transactions) < amount / 20
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM kept WHERE reason = 'dead'").fetchone() == (amount,)
