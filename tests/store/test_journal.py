"""The journal keeps what happened to events, within its bounds, whatever the disk does, and tells it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.journal import NoJournal
from bridge.store import (
    Choice,
    Filter,
    JournalConfig,
    Known,
    Store,
    history,
    journal,
    orders,
    segments,
)
from bridge.store.history import Found, Line, Needle
from bridge.store.journal import JournalFiles
from bridge.store.lines import encode
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import child, letter, on_a_tmpfs, value
from tests.store.events import event as stored

LOST = "bridge_journal_lines_lost_total"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Return a directory that is there, as the store's is."""
    return tmp_path


def event(number: int = 1, *, subject: str | None = None, **attributes: str) -> Event:
    name = f"uploads-0-{number}-1764500000000"
    return Event(id=name, source="uploads", type="put", data=b"{}", subject=subject, attributes=attributes)


@asynccontextmanager
async def kept(state_dir: Path, metrics: Metrics, **config: Any) -> AsyncIterator[JournalFiles]:
    async with JournalFiles.open(state_dir, metrics, JournalConfig(**config)) as opened:
        assert isinstance(opened, JournalFiles)
        yield opened


def find(state_dir: Path, text: str) -> list[str]:
    return [line.what for line in history.read(state_dir, Needle.of(text)).lines]


def files(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "journal").glob("*"))


def test_the_settings_are_read_in_the_units_of_the_configuration() -> None:
    config = JournalConfig.model_validate({"max_bytes": "256MiB", "keep_for": "30d"})
    assert config == JournalConfig()
    assert (config.max_bytes, config.keep_for) == (256 * 2**20, 30 * 86400)
    assert JournalConfig.model_validate({"max_bytes": "0"}).max_bytes == 0
    for wrong in (1000, -1, "many", True, False):
        with pytest.raises(ValidationError):
            JournalConfig.model_validate({"max_bytes": wrong})


async def test_all_that_is_noted_is_found_again_in_its_order(state_dir: Path, metrics: Metrics) -> None:
    one = event(subject="data/leaf-1.nc", key="leaf-1.nc", topic="uploads")
    began = time.time()
    async with kept(state_dir, metrics) as written:
        now = time.monotonic()
        written.note(
            "failed", one, "plants", attempts=1, cause="http_500", detail='500: "no\\t\n\0', job="plants-1"
        )
        written.note("accepted", one, "plants", at=now, since=now - 2, job="plants-1")
        written.note("accepted", event(2), "plants", at=now, since=now, job="plants-2")
        written.note("dead", event(3), cause="route", detail="why", number=7)
        written.note("sent", event(4), "plants", route="folder", into="merged-1")
    found = history.read(state_dir, Needle.of("leaf-1.nc"))
    assert [line.what for line in found.lines] == ["failed", "accepted"]
    assert found.lines[0].detail == '500: "no\\t\n\0'
    accepted = found.lines[1]
    assert began - 0.01 <= accepted.t <= time.time()
    assert accepted.received == pytest.approx(accepted.t - 2, abs=0.005)
    assert accepted == Line(
        t=accepted.t,
        what="accepted",
        source="uploads",
        id=one.id,
        subject="data/leaf-1.nc",
        key="leaf-1.nc",
        service="plants",
        job="plants-1",
        received=accepted.received,
    )
    (dead,) = history.read(state_dir, Needle(event(3).id, "exact")).lines
    assert (dead.number, dead.cause, dead.detail, dead.service) == (7, "route", "why", "")
    (sent,) = history.read(state_dir, Needle("merged-1", "exact")).lines
    assert (sent.id, sent.route, sent.into) == (event(4).id, "folder", "merged-1")
    (named,) = history.read(state_dir, Needle("merged-1", "name")).lines
    assert named == sent
    assert history.read(state_dir, Needle("leaf-1.nc", "name")).lines == found.lines
    assert history.read(state_dir, Needle.of("leaf-1.nc"), seconds=-1).more
    assert found.begins == found.lines[0].t
    assert (found.more, found.lost, found.killed) == (False, 0, ())
    assert value(metrics, LOST) == 0


def test_a_needle_is_exact_a_name_a_suffix_or_a_glob() -> None:
    assert Needle("in/leaf-1.nc", "name").matches("/data/in/leaf-1.nc")
    assert Needle("leaf-1.nc", "name").matches("leaf-1.nc")
    assert not Needle("leaf-1.nc", "name").matches("/data/cloverleaf-1.nc")
    assert Needle.of("leaf-1.nc").matches("/data/leaf-1.nc")
    assert not Needle.of("leaf-1.nc").matches("/data/leaf-1.nc.tmp")
    assert Needle.of("*/leaf-?.nc").matches("/data/in/leaf-1.nc")
    assert not Needle.of("*/leaf-?.nc").matches("/data/leaf-10.nc")
    assert Needle.of("a[1].nc").matches("a1.nc")
    assert Needle.of("a[1].nc").matches("a[1].nc")
    assert Needle.of("a[1.nc").matches("/a[1.nc")
    assert not Needle("leaf-1.nc", "exact").matches("/data/leaf-1.nc")
    assert not Needle.of("").matches("")
    assert not Needle.of("*").matches("")


_texts = st.text(st.characters(exclude_categories=())) | st.text('\\tn0\0\t\n\r"☃\ud800', max_size=9)


@given(st.lists(st.tuples(_texts, _texts, _texts, _texts, st.booleans()), min_size=1, max_size=4))
def test_any_text_is_read_back_and_found_by_all_of_it_and_by_its_end(
    rows: list[tuple[str, str, str, str, bool]],
) -> None:
    texts: list[str] = []
    others: dict[int, tuple[int, str, str, int, str, str]] = {}
    for at, (name, subject, key, job, more) in enumerate(rows):
        texts += f"\n{1000500 + 1000 * at}\t\t", "failed", "\t", "s", "\t", name, "\t", subject, "\t", key
        texts += "\t", "", "\t", job
        if more:
            others[len(texts) - 1] = 1, "c", job, 0, "", key
    lines = encode(texts, others).decode("utf-8", "surrogatepass").split("\n")
    assert lines.pop() == ""
    for line, (at, (name, subject, key, job, more)) in zip(lines, enumerate(rows), strict=True):
        raw = line.encode("utf-8", "surrogatepass")
        columns = segments.columns(raw)
        assert columns is not None
        read = history._line(dict(zip(segments.COLUMNS, map(segments.unescape, columns), strict=False)))
        assert (read.t, read.id, read.subject, read.key, read.job) == (1000.5 + at, name, subject, key, job)
        assert (read.detail, read.into) == ((job, key) if more else ("", ""))
        for text in (name, subject, key, job):
            for needle in (Needle(text, "exact"), Needle(text[len(text) // 2 :]), Needle.of(text)):
                assert all(literal in raw for literal in needle.literals())
                assert needle.matches(text) == bool(text)


async def test_very_long_texts_are_cut_and_found_by_all_of_it_and_by_their_end(
    state_dir: Path, metrics: Metrics
) -> None:
    long = "".join(f"{number}/" for number in range(100_000))
    async with kept(state_dir, metrics) as written:
        written.note("dead", event(subject=long, key=long), cause="route", detail=long)
    for needle in (Needle(long, "exact"), Needle(long), Needle(long[-100:]), Needle.of("0/1/2/*")):
        (line,) = history.read(state_dir, needle).lines
        assert len(line.subject) < 2100
        assert f"…({len(long)} characters)…" in line.subject
        assert line.detail == line.key == line.subject
    assert history.read(state_dir, Needle(long + "x", "exact")).lines == ()


async def test_the_newest_lines_are_returned_where_there_are_many(state_dir: Path, metrics: Metrics) -> None:
    async with kept(state_dir, metrics) as written:
        for number in range(30):
            written.note("accepted", event(number, subject="same.nc"), "plants", job=f"plants-{number}")
    found = history.read(state_dir, Needle.of("same.nc"), limit=10)
    assert [line.job for line in found.lines] == [f"plants-{number}" for number in range(20, 30)]
    assert found.more
    assert not history.read(state_dir, Needle.of("same.nc"), limit=30).more
    assert len(history.read(state_dir, Needle.of("*")).lines) == 30


async def test_a_journal_that_is_turned_off_is_left_as_it_is(state_dir: Path, metrics: Metrics) -> None:
    async with kept(state_dir, metrics) as written:
        written.note("accepted", event(), "plants")
    before = [(path, path.read_bytes()) for path in files(state_dir)]
    async with JournalFiles.open(state_dir, metrics, JournalConfig(max_bytes=0)) as off:
        assert isinstance(off, NoJournal)
        off.note("accepted", event(2), "plants", job="x")
        assert off.problems() == []
    assert [(path, path.read_bytes()) for path in files(state_dir)] == before


def test_without_a_journal_nothing_is_found(state_dir: Path) -> None:
    assert history.read(state_dir, Needle.of("x")) == Found()


async def test_segments_are_for_their_owner_alone_and_stay_within_max_bytes(
    state_dir: Path, metrics: Metrics
) -> None:
    most = 2**20
    async with kept(state_dir, metrics, max_bytes=most) as written:
        for turn in range(12):
            for number in range(1000):
                name = f"{turn}-{number}.nc"
                written.note("accepted", event(turn * 1000 + number, subject=name), "plants", job=name)
            await until(lambda: not written._waiting)
            assert sum(path.stat().st_size for path in files(state_dir)) <= most
    assert len(files(state_dir)) >= 15
    assert {path.stat().st_mode & 0o777 for path in files(state_dir)} == {0o600}
    assert (state_dir / "journal").stat().st_mode & 0o777 == 0o700
    assert find(state_dir, "11-999.nc") == ["accepted"]
    assert find(state_dir, "/0-0.nc") == []
    found = history.read(state_dir, Needle.of("11-999.nc"))
    assert found.begins is not None
    assert found.begins <= found.lines[0].t
    assert value(metrics, "bridge_journal_bytes") == pytest.approx(most, rel=0.2)
    assert value(metrics, LOST) == 0
    async with kept(state_dir, metrics, max_bytes=most):  # it goes on where it was
        pass
    assert find(state_dir, "11-999.nc") == ["accepted"]


async def test_a_segment_goes_once_its_newest_line_is_too_old(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_LOOK_SECONDS", 0.0)
    days = 0.0

    def now() -> float:
        return time.time() + days * 86400

    async with JournalFiles.open(state_dir, metrics, JournalConfig(), now) as written:
        written.note("accepted", event(subject="old.nc"), "plants")
        await until(lambda: find(state_dir, "old.nc") == ["accepted"])
        days = 29.9
        written.note("accepted", event(2, subject="older.nc"), "plants")
        await until(lambda: find(state_dir, "older.nc") == ["accepted"])
        days = 30.1
        await until(lambda: files(state_dir) == [])
        assert history.read(state_dir, Needle.of("*")) == Found()
        written.note("accepted", event(3, subject="new.nc"), "plants")
        days = -1000  # a clock that is set back deletes nothing
        await until(lambda: find(state_dir, "*") == ["accepted"])


KILLED = """
    from bridge.core.event import Event

    async def main():
        async with JournalFiles.open(Path(sys.argv[1]), Metrics(), JournalConfig()) as journal:
            for number in range(1_000_000):
                name = f"{number}.nc"
                journal.note("accepted", Event(id=name, source="s", type="t", data=b""), "plants", job=name)
                if number % 100 == 0:
                    await asyncio.sleep(0.01)
                if number == 3000:
                    print("ready", flush=True)

    asyncio.run(main())
"""


async def test_after_a_kill_the_lines_before_are_there_and_the_kill_is_told(
    state_dir: Path, metrics: Metrics
) -> None:
    process = child(KILLED, str(state_dir))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (path,) = files(state_dir)
    with path.open("ab") as file:
        file.write(b"1764500000000\t\taccepted\ts\tto")  # as a kill within a write leaves it
    before = history.read(state_dir, Needle.of("*"), limit=10**6)
    names = [line.id for line in before.lines]
    assert names == [f"{number}.nc" for number in range(len(names))]
    assert len(names) > 1000
    async with kept(state_dir, metrics) as written:
        written.note("accepted", event(subject="next.nc"), "plants")
    after = history.read(state_dir, Needle.of("*"), limit=10**6)
    assert after.lines[:-1] == before.lines
    assert after.lines[-1].subject == "next.nc"
    assert after.killed == (before.lines[-1].t,)
    async with kept(state_dir, metrics):
        pass
    assert history.read(state_dir, Needle.of("next.nc")).killed == after.killed


def test_a_segment_that_can_t_be_cut_at_its_whole_lines_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    first = segments.Segments(tmp_path / "journal", 2**24, 3600.0, lambda: 1764500002.0)
    first.write(b"1764500000000\t\taccepted\ts\tone\n")
    first.close()
    (path,) = files(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(segments.os, "ftruncate", refuse)
    second = segments.Segments(tmp_path / "journal", 2**24, 3600.0, lambda: 1764500002.0)
    with pytest.raises(OSError, match="Input/output"):
        second.resume()
    monkeypatch.undo()
    second.write(b"1764500000001\t\taccepted\ts\ttwo\n")
    second.close()
    old, new = files(tmp_path)
    assert (old.read_bytes(), new.read_bytes().count(b"\n")) == (before, 2)


@pytest.mark.parametrize("what", ["deleted", "replaced", "emptied", "directory deleted"])
async def test_what_a_person_does_to_the_segment_costs_no_more_than_what_was_in_it(
    state_dir: Path, metrics: Metrics, what: str
) -> None:
    async with kept(state_dir, metrics) as written:
        written.note("accepted", event(subject="before.nc"), "plants")
        await until(lambda: find(state_dir, "before.nc") == ["accepted"])
        (path,) = files(state_dir)
        if what == "emptied":
            os.truncate(path, 0)
        else:
            path.unlink()
        if what == "replaced":
            path.write_text("shopping list\n")
        if what == "directory deleted":
            path.parent.rmdir()
        written.note("accepted", event(2, subject="after.nc"), "plants")
        await until(lambda: find(state_dir, "after.nc") == ["accepted"])
        assert written.problems() == []
    assert find(state_dir, "before.nc") == []


async def test_files_that_are_no_segments_are_left_alone(state_dir: Path, metrics: Metrics) -> None:
    directory = state_dir / "journal"
    directory.mkdir(parents=True)
    (directory / "notes").write_text("x")
    os.mkfifo(directory / "000000000003.log")
    (directory / "000000000004.log").write_text(
        "oscar-bridge journal 2\n1764500000000\t\taccepted\ts\tx.nc\n"
    )
    (directory / "000000000005.log").symlink_to("/etc/passwd")
    (directory / "000000000006.log").mkdir()
    async with kept(state_dir, metrics, max_bytes=2**20) as written:
        for number in range(6000):
            written.note("accepted", event(number, subject=f"{number}.nc" + "x" * 300), "plants")
            if number % 1000 == 0:
                await until(lambda: not written._waiting)
        assert written.problems() == []
    assert find(state_dir, "/5999.nc*") == []
    assert find(state_dir, "5999.nc*") == ["accepted"]
    assert {path.name for path in files(state_dir)} >= {
        "notes",
        "000000000003.log",
        "000000000005.log",
        "000000000006.log",
    }
    assert sum(path.lstat().st_size for path in files(state_dir) if path.is_file()) < 2**20 + 10_000


async def test_what_a_damaged_disk_leaves_of_a_segment_is_read_as_far_as_it_is_whole(
    state_dir: Path, metrics: Metrics
) -> None:
    async with kept(state_dir, metrics) as written:
        for number in range(3):
            written.note("dead", event(number, subject="x.nc"), "plants", number=number + 1, cause="route")
    (path,) = files(state_dir)
    head, first, second, third, end = path.read_bytes().splitlines(keepends=True)
    holed = second[:20] + b"\0" * 20 + second[40:]
    path.write_bytes(
        head + first + holed + b"\xff\xfe x.nc \t\n" + third.replace(b"\t3\t", b"\tthree\t") + end
    )
    assert [line.number for line in history.read(state_dir, Needle.of("x.nc")).lines] == [1]


def test_a_journal_that_may_not_be_read_says_so(state_dir: Path) -> None:
    (state_dir / "journal").write_text("no directory")
    with pytest.raises(StoreError, match="can't be read: Not a directory"):
        history.read(state_dir, Needle.of("x"))


async def test_a_journal_that_can_not_be_written_is_told_and_written_once_it_can(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(journal, "MOST_WAITING", 10)
    (state_dir / "journal").write_text("in the way")
    async with kept(state_dir, metrics) as written:
        await until(lambda: written.problems() != [])
        (problem,) = written.problems()
        assert problem == f"the journal {state_dir}/journal can't be written: File exists"
        for number in range(400):
            written.note("accepted", event(number, subject=f"{number}.nc"), "plants")
            if number % 100 == 0:
                await until(lambda: written._pending != [])
        await until(lambda: value(metrics, LOST) > 0)
        (state_dir / "journal").unlink()
        await until(lambda: written.problems()[0].startswith(f"{problem} (over for"))
    found = history.read(state_dir, Needle.of("*"))
    assert found.lost == value(metrics, LOST)
    assert len(found.lines) + found.lost == 400
    assert capsys.readouterr().err.count("can't be written") <= 1


FULL = """
    from bridge.core.event import Event
    from bridge.store import history, journal, segments
    from bridge.store.history import Needle
    from bridge.testing import until

    segments._LEFT_FREE = -(2**40)
    journal._AGAIN_SECONDS = 0.05
    journal.MOST_WAITING = 1000

    async def main(directory):
        metrics = Metrics()
        lost = lambda: metrics.registry.get_sample_value("bridge_journal_lines_lost_total")
        ballast = directory / "ballast"
        ballast.write_bytes(bytes(700_000))
        async with journal.JournalFiles.open(directory, metrics, JournalConfig()) as written:
            number = 0
            while not (lost() and written.problems()):
                for _ in range(100):
                    event = Event(id=f"{number}.nc", source="s", type="t", data=b"")
                    written.note("accepted", event, "plants", job=event.id)
                    number += 1
                await asyncio.sleep(0.02)
            assert "No space left" in written.problems()[0], written.problems()
            ballast.unlink()
            await until(lambda: "over for" in written.problems()[0])
        found = history.read(directory, Needle.of("*"), limit=10**6)
        assert found.lost == lost() and found.lines and len(found.lines) + found.lost == number, (
            found.lost, lost(), len(found.lines), number)
        assert len(list((directory / "journal").iterdir())) == 1

    asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_full_disk_costs_lines_that_are_counted_and_nothing_else(state_dir: Path) -> None:
    process = child(FULL, str(state_dir), wrap=on_a_tmpfs(state_dir, "1m"))
    await asyncio.to_thread(process.communicate)
    assert process.returncode == 0


async def test_a_way_that_is_not_free_at_the_start_is_told_until_it_is_though_no_event_comes(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_AGAIN_SECONDS", 0.01)
    (state_dir / "journal").write_text("in the way")
    tries = 0
    write = segments.Segments.write

    def counted(self: segments.Segments, lines: bytes) -> None:
        nonlocal tries
        tries += 1
        write(self, lines)

    monkeypatch.setattr(segments.Segments, "write", counted)
    async with kept(state_dir, metrics) as written:
        await until(lambda: tries > 5)
        assert written.problems() == [f"the journal {state_dir}/journal can't be written: File exists"]
        (state_dir / "journal").unlink()
        await until(lambda: "(over for" in written.problems()[0])


async def test_a_disk_that_is_nearly_full_is_left_to_the_store(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_AGAIN_SECONDS", 0.05)
    async with kept(state_dir, metrics) as written:
        await until(lambda: files(state_dir) != [])
        with monkeypatch.context() as nearly_full:
            nearly_full.setattr(segments, "_LEFT_FREE", 2**62)
            written.note("accepted", event(subject="x.nc"), "plants")
            await until(lambda: written.problems() != [])
            assert written.problems()[0].endswith("can't be written: the disk is nearly full")
            assert find(state_dir, "x.nc") == []
        await until(lambda: find(state_dir, "x.nc") == ["accepted"])
    assert value(metrics, LOST) == 0


async def test_leaving_writes_what_waits_and_is_not_held_by_a_disk_that_hangs(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(journal, "_HANG_SECONDS", 0.0)
    read_end, write_end = os.pipe()
    real = os.write

    def hangs(descriptor: int, data: bytes) -> int:
        os.read(read_end, 1)
        return real(descriptor, data)

    async with kept(state_dir, metrics) as written:
        await until(lambda: files(state_dir) != [])
        monkeypatch.setattr(os, "write", hangs)
        written.note("accepted", event(subject="x.nc"), "plants")
        await until(lambda: written.problems() != [])
        assert written.problems()[0].startswith(
            "the disk does not answer: a write of the journal is under way"
        )
    assert written._thread.is_alive()
    real(write_end, b"....")
    written._thread.join(5)
    with suppress(OSError):
        os.close(read_end)
    os.close(write_end)
    assert find(state_dir, "x.nc") == ["accepted"]


async def test_what_a_person_orders_for_an_event_is_written_down(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store, kept(state_dir, metrics) as written:
        for name in ("again", "away", "elsewhere"):
            await store.bury(letter(name))
        for name, service in (("moved", "gone"), ("buried", "lost")):
            await store.park(stored(name), service)
        there = Known({"plants", "flood"}, {"uploads"})
        await orders.replay(store, Filter(numbers=[1]), dry_run=True, journal=written)
        await orders.replay(store, Filter(numbers=[1]), as_new=True, journal=written)
        await orders.discard(store, Filter(numbers=[2, 99]), journal=written)
        await orders.replay(store, Filter(numbers=[3]), to="flood", journal=written)
        await orders.move(store, Choice(service="gone"), "flood", there, journal=written)
        await orders.bury(store, Choice(service="lost"), there, journal=written)
        await orders.discard(store, Filter(numbers=[99]), journal=written)
    lines = history.read(state_dir, Needle.of("*")).lines
    assert [(line.what, line.id, line.service, line.number) for line in lines] == [
        ("replayed", "again", "plants", 1),
        ("discarded", "away", "plants", 2),
        ("replayed", "elsewhere", "flood", 3),
        ("moved", "moved", "flood", 4),
        ("dead", "buried", "lost", 5),
    ]
    assert [line.detail for line in lines] == ["as a new event", "", "", "", ""]
    assert lines[4].cause == "service_removed"
