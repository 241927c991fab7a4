"""At the budget nothing more is kept, nothing is lost, and it goes on once there is room."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.core.errors import StoreFullError
from bridge.core.ports import Spooled
from bridge.store import Filter, Store, StoreConfig, budget, orders, writer
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import child, event, letter, on_a_tmpfs, parked, parked_ids, value

MIB = 2**20
SMALL = StoreConfig(max_bytes=MIB)


def test_the_settings_are_read_in_the_units_of_the_configuration() -> None:
    config = StoreConfig.model_validate({"max_bytes": "2GiB", "keep_dead_for": "90d"})
    assert config == StoreConfig()
    assert (config.max_bytes, config.keep_dead_for) == (2 * 2**30, 90 * 86400)
    with pytest.raises(ValidationError, match="1048576"):
        StoreConfig.model_validate({"max_bytes": "1000"})


async def fill(store: Store, size: int = 15_000) -> list[str]:
    kept = []
    with pytest.raises(StoreFullError, match=r"limit of 1 MiB \(store.max_bytes\)"):  # noqa: PT012 - until it does
        for number in range(10_000):
            await store.park(event(f"{size}-{number}", data=os.urandom(size)), "plants")
            kept.append(f"{size}-{number}")
    return kept


def on_disk(state_dir: Path) -> int:
    return sum(path.stat().st_size for path in state_dir.glob("events.sqlite3*") if "shm" not in path.name)


async def test_a_full_store_says_so_until_there_is_room(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        kept = await fill(store)
        assert len(kept) > 30
        assert on_disk(state_dir) < 1.2 * MIB
        assert "store.max_bytes" in store.problems()[0]
        with pytest.raises(StoreFullError):
            await store.bury(letter("other", data=b"x" * 100_000))
        assert await parked_ids(store) == kept
        for row in (await parked(store))[:20]:
            store.forget(row.number)
        await until(lambda: store.problems() == [])
        await store.park(event("later", data=b"x" * 5000), "plants")
        assert await parked_ids(store) == [*kept[20:], "later"]


async def test_what_is_kept_already_can_be_buried_noted_and_replayed_in_a_full_store(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        kept = await fill(store)
        await store.park(event(kept[0]), "plants", attempts=1, first_attempt=5.0)
        for name in kept:
            await store.bury(letter(name))
        assert store.problems()
        assert (await orders.replay(store, Filter())).changed == len(kept)
        for name in kept:
            await store.bury(letter(name))
        assert (await orders.discard(store, Filter())).changed == len(kept)
        await until(lambda: store.problems() == [])
        await fill(store)


async def bury_until_full(store: Store, size: int) -> int:
    """Bury letters until one is refused; return how many were kept."""
    with pytest.raises(StoreFullError, match=r"limit of 1 MiB \(store.max_bytes\): nothing more is kept"):  # noqa: PT012 - until it does
        for number in range(10_000):
            await store.bury(letter(f"dead-{number}", data=os.urandom(size)))
    return number


async def test_a_sixteenth_of_the_budget_takes_dead_letters_alone(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        await fill(store)
        assert 15 / 16 * MIB - 40_000 < on_disk(state_dir) < 15 / 16 * MIB + 40_000
        letters = await bury_until_full(store, 3000)
        assert 10 < letters < (MIB / 16 + 15_000) / 3000
        assert on_disk(state_dir) < MIB + 40_000


async def test_what_is_told_of_a_full_store_is_true_of_dead_letters_and_of_events(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_PROBE_SECONDS", 0.01)

    def told() -> str:
        (problem,) = store.problems()
        return problem

    async with Store.open(state_dir, metrics, SMALL) as store:
        await fill(store)
        assert told().endswith("kept free for dead letters: no more events are kept until some of it goes")
        event_told = told()
        await store.bury(letter("1", data=b"x" * 3000))
        await asyncio.sleep(0.05)
        assert told() == event_told, "that letters are kept makes no room for events"
        await bury_until_full(store, 3000)
        assert "(store.max_bytes): nothing more is kept" in told()
        with pytest.raises(StoreFullError, match="no more events are kept"):
            await store.park(event("more", data=b"x" * 15_000), "plants")
        assert "(store.max_bytes): nothing more is kept" in told()
        await orders.discard(store, Filter())
        await until(lambda: told() == event_told)
        for row in await parked(store):
            store.forget(row.number)
        await until(lambda: store.problems() == [])


async def test_what_is_spooled_leaves_room_for_dead_letters(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        spool = store.spool("arrivals")
        with pytest.raises(StoreFullError, match="no more events are kept"):  # noqa: PT012 - until it does
            for number in range(10_000):
                await spool.append([Spooled(key=str(number), data=os.urandom(15_000))])
        with pytest.raises(StoreFullError, match="no more events are kept"):
            await spool.mark([b"%016d" % number for number in range(2000)], 1)
        assert await bury_until_full(store, 3000) > 10
        assert spool.waiting == number


async def test_of_a_group_in_a_full_store_the_dead_letters_are_kept(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        kept = await fill(store)
        both = [
            keep
            for n in range(5)
            for keep in (
                store.park(event(f"new-{n}", data=os.urandom(15_000)), "plants"),
                asyncio.ensure_future(store.bury(letter(f"dead-{n}", data=os.urandom(3000)))),
            )
        ]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(result) for result in results] == [StoreFullError, type(None)] * 5
        assert await parked_ids(store) == kept
        assert value(metrics, "bridge_kept_events", service="plants", reason="dead") == 5


async def test_a_letter_that_filled_the_last_of_the_budget_is_replayed(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        kept = await fill(store)
        letters = await bury_until_full(store, 3000)
        assert (await orders.replay(store, Filter())).changed == letters
        assert len(await parked_ids(store)) == len(kept) + letters
        assert store.waiting("plants") == len(kept) + letters


async def test_a_group_is_kept_as_far_as_it_fits(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        parks = [store.park(event(str(n), data=os.urandom(20_000)), "plants") for n in range(100)]
        results = await asyncio.gather(*parks, return_exceptions=True)
        kept = [str(n) for n, result in enumerate(results) if result is None]
        assert 20 < len(kept) < 60
        assert all(result is None or isinstance(result, StoreFullError) for result in results)
        assert await parked_ids(store) == kept
        assert store.waiting("plants") == len(kept)


async def test_the_file_is_used_again_and_again_within_the_budget(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, SMALL) as store:
        for round_ in range(5):
            await fill(store, size=10_000 + round_)
            for row in await parked(store):
                store.forget(row.number)
            await until(lambda: store.problems() == [])
        assert on_disk(state_dir) < 1.5 * MIB
        assert value(metrics, "bridge_store_bytes") == pytest.approx(on_disk(state_dir), rel=0.3)


async def test_a_budget_made_smaller_is_told_and_what_is_kept_stays(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(
            *(store.park(event(str(number), data=b"x" * 5000), "plants") for number in range(400))
        )
    async with Store.open(state_dir, metrics, SMALL) as store:
        with pytest.raises(StoreFullError):
            await store.park(event("new"), "plants")
        assert len(await parked_ids(store)) == 400


async def test_a_full_store_is_told_as_long_as_what_does_not_fit_is_tried_again(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks in between would take it for well, though a source waits."""
    monkeypatch.setattr(writer, "_PROBE_SECONDS", 0.01)
    async with Store.open(state_dir, metrics, SMALL) as store:
        large = event("large", data=b"x" * 2 * MIB)
        for _ in range(3):
            with pytest.raises(StoreFullError):
                await store.park(large, "plants")
            for _ in range(20):
                assert "store.max_bytes" in store.problems()[0]
                await asyncio.sleep(0.01)
        await store.park(event("small"), "plants")
        monkeypatch.setattr(budget, "_REFUSED_SECONDS", 0.0)
        await until(lambda: store.problems() == [])


async def test_a_reader_that_is_slow_does_not_make_the_log_grow_beyond_the_budget(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=3 * MIB)) as store:
        await store.park(event(), "plants")
        with closing(sqlite3.connect(state_dir / "events.sqlite3", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM kept").fetchone()
            with pytest.raises(StoreFullError):  # noqa: PT012 - until it does
                for number in range(10_000):
                    await store.bury(letter(str(number % 3), data=os.urandom(3000)))
                    await store.bury(letter(f"new-{number}", data=os.urandom(3000)))
            assert on_disk(state_dir) < 4 * MIB
            reader.execute("ROLLBACK")
        await until(lambda: store.problems() == [])
        await store.park(event("later"), "plants")


DISK = """
    from bridge.testing import until
    async def main():
        state = Path(arguments[0])
        kept = []
        async with Store.open(state, Metrics(CollectorRegistry())) as store:
            fill()
            try:
                for number in range(10_000):
                    await store.park(event(str(number), data=os.urandom(20_000)), "plants")
                    kept.append(str(number))
            except StoreError as error:
                print(error)
            gone = await store.parked("plants", without=(), limit=3)
            for row in gone:
                store.forget(row.number)
            make_room()
            await until(lambda: not store.problems())  # without a write of ours
            await store.park(event("later"), "plants")
            ids = [row.event.id for row in await store.parked("plants", without=(), limit=10_000)]
            assert ids == [*kept[3:], "later"], ids
        async with Store.open(state, Metrics(CollectorRegistry())) as store:
            assert store.waiting("plants") == len(ids)
        print("all there", len(kept) > 3)
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (
            """
            ballast = Path(arguments[0]) / "ballast"
            def fill(): ballast.write_bytes(b"x" * 3_000_000)
            def make_room(): ballast.unlink()
            """,
            "has a disk that is nearly full",
        ),
        (
            """
            def fill():
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            def make_room():
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            """,
            "I/O error",
        ),
    ],
    ids=["full", "io-error"],
)
def test_a_disk_in_trouble_is_told_loses_nothing_and_is_noticed_when_it_is_well(
    tmp_path: Path, condition: str, told: str
) -> None:
    process = child(condition, str(tmp_path), then=DISK, wrap=on_a_tmpfs(tmp_path, "6m"))
    out, _ = process.communicate(timeout=60)
    assert told in out
    assert out.splitlines()[-1] == "all there True"
    assert process.returncode == 0


def test_a_disk_that_kept_events_have_filled_is_free_again_once_they_go(tmp_path: Path) -> None:
    process = child(
        """
        from bridge.testing import until
        async def main():
            state = Path(arguments[0])
            async with Store.open(state, Metrics(CollectorRegistry())) as store:
                parks = (store.park(event(str(n), data=os.urandom(20_000)), "plants") for n in range(500))
                results = await asyncio.gather(*parks, return_exceptions=True)
                assert {type(result) for result in results} == {type(None), StoreFullError}, results
                print({str(result) for result in results if result is not None})
                for row in await store.parked("plants", without=(), limit=500):
                    store.forget(row.number)
                await until(lambda: not store.problems())
                await store.park(event("later", data=os.urandom(20_000)), "plants")
            async with Store.open(state, Metrics(CollectorRegistry())) as store:
                print(store.waiting("plants"))
        asyncio.run(main())
        """,
        str(tmp_path),
        wrap=on_a_tmpfs(tmp_path, "6m"),
    )
    out, _ = process.communicate(timeout=60)
    assert "has a disk that is nearly full" in out.splitlines()[0]
    assert out.splitlines()[1:] == ["1"]


def test_a_start_on_a_full_disk_fails_in_plain_words_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    process = child(
        """
        async def main():
            state = Path(arguments[0])
            ballast = state / "ballast"
            async with Store.open(state, Metrics(CollectorRegistry())) as store:
                await store.park(event(), "plants")
            try:
                ballast.write_bytes(b"x" * 10_000_000)
            except OSError:
                pass
            try:
                async with Store.open(state, Metrics(CollectorRegistry())):
                    print("opened")
            except StoreError as error:
                print(error)
            ballast.unlink()
            async with Store.open(state, Metrics(CollectorRegistry())) as store:
                print(store.waiting("plants"))
        asyncio.run(main())
        """,
        str(tmp_path),
        wrap=on_a_tmpfs(tmp_path, "4m"),
    )
    out, _ = process.communicate(timeout=60)
    assert "full" in out.splitlines()[0]
    assert out.splitlines()[1] == "1"


async def test_a_store_that_turns_read_only_is_told_and_noticed_when_it_is_writable_again(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event("1"), "plants")
        (row,) = await parked(store)
        assert store._writer.file.connection is not None
        store._writer.file.connection.execute("PRAGMA query_only = ON")  # the next connection is well again
        store.forget(row.number)
        await until(store.problems)
        assert "readonly" in store.problems()[0]
        assert store.waiting("plants") == 0
        assert await parked(store) == []
        await until(lambda: store.problems() == [])
    async with Store.open(state_dir, metrics) as store:
        assert store.waiting("plants") == 0
