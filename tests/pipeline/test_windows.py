"""Events that are sent together: when, in what form, and each in one job whatever happens."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline import windows
from tests.pipeline.clock import VirtualLoop, now
from tests.pipeline.gathering import Gathering
from tests.pipeline.scripted import ACCEPTED, UNAVAILABLE


@pytest.fixture(autouse=True, scope="module")
def _in_this_thread() -> Iterator[None]:
    """Virtual time does not wait for other threads."""

    async def directly(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "to_thread", directly)
        yield


def numbered(number: int, folder: str = "/in/a", name: str | None = None) -> Event:
    path = f"{folder}/{number}.nc" if name is None else f"{folder}/{name}"
    data = json.dumps({"n": number}).encode()
    return Event(id=f"{path}@{number}", source="uploads", type="test", subject=path, data=data)


def done(folder: str = "/in/a", number: int = -1) -> Event:
    return numbered(number, folder, ".done")


def numbers(sent: list[list[Any]]) -> list[list[int]]:
    return sorted(sorted(member["n"] for member in members) for members in sent)


MARKED: dict[str, Any] = {"quiet": "5s", "complete": {"marker": 'subject.endsWith(".done")'}}


async def test_a_window_is_sent_when_its_time_is_over_and_its_events_are_settled_before() -> None:
    bed = Gathering({"merge": {"window": "60s"}})
    async with bed.running():
        for n in range(5):
            await bed.send(numbered(n))
            await asyncio.sleep(1)
        assert set(bed.outcomes.values()) == {Outcome.PARKED}
        assert len(bed.outcomes) == 5
        assert bed.keeper.count("window") == 5
        assert not bed.jobs
        await bed.idle()
    assert numbers(bed.sent) == [[0, 1, 2, 3, 4]]
    assert 60 <= bed.attempts[0][0] - 1000 < 61
    assert bed.value("bridge_windows_closed_total", service="plants", reason="window") == 1


async def test_a_full_window_is_sent_at_once_and_the_next_event_opens_another() -> None:
    bed = Gathering({"merge": {"window": "1h", "max_events": 3}})
    async with bed.running():
        for n in range(7):
            await bed.send(numbered(n))
        await asyncio.sleep(1)
        assert numbers(bed.sent) == [[0, 1, 2], [3, 4, 5]]
        await bed.idle()
    assert numbers(bed.sent) == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_window_closes_before_its_bytes_are_too_many() -> None:
    bed = Gathering({"merge": {"window": "1h", "max_bytes": 20}})
    async with bed.running():
        for n in range(5):
            await bed.send(numbered(n))  # 8 bytes each
        await bed.idle()
    assert numbers(bed.sent) == [[0, 1], [2, 3], [4]]


async def test_events_of_one_key_go_together() -> None:
    bed = Gathering({"merge": {"window": "10s", "key": "data.n % 2"}})
    async with bed.running():
        for n in range(6):
            await bed.send(numbered(n))
        await bed.idle()
    assert numbers(bed.sent) == [[0, 2, 4], [1, 3, 5]]
    assert {event.subject for event in bed.jobs.values()} == {"0", "1"}


async def test_a_key_that_an_event_has_not_filters_it_and_one_that_is_none_is_a_dead_letter() -> None:
    bed = Gathering({"merge": {"window": "10s", "key": "data.who"}})
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(Event(id="list", source="uploads", type="test", data=b'{"who": [1]}'))
        await bed.idle()
    assert bed.outcomes == {numbered(1).id: Outcome.FILTERED, "list": Outcome.DEAD_LETTERED}
    (row,) = bed.connection.execute("SELECT service, cause, detail FROM kept").fetchall()
    assert row[:2] == ("", "route")
    assert "`merge.key` gave list" in row[2]


async def test_a_record_whose_key_is_too_long_for_a_window_is_a_dead_letter() -> None:
    bed = Gathering({"quiet": "10s"})
    attributes = {"topic": "readings", "key": "k" * 2001}
    async with bed.running():
        await bed.send(Event(id="a", source="uploads", type="test", data=b"{}", attributes=attributes))
        await bed.send(numbered(1))
        await bed.idle()
    assert bed.outcomes["a"] is Outcome.DEAD_LETTERED
    assert numbers(bed.sent) == [[1]]


async def test_a_window_whose_manner_is_not_understood_is_sent_all_the_same() -> None:
    bed = Gathering({"merge": {"window": "10s"}})
    async with bed.running():
        await bed.send(numbered(1))
        await asyncio.sleep(1)
        await bed.send(numbered(2, "/in/b"))
        await asyncio.sleep(1)
        bed.connection.execute('UPDATE windows SET manner = \'{"of": "no release"}\'')
        await bed.idle()
    assert numbers(bed.sent) == [[1, 2]]


async def test_quiet_sends_a_folder_once_nothing_more_comes_there() -> None:
    bed = Gathering({"quiet": "30s"})
    async with bed.running():
        for n in range(10):
            await bed.send(numbered(n, "/in/a"))
            if n < 5:
                await bed.send(numbered(100 + n, "/in/b"))
            await asyncio.sleep(20)
        await bed.idle()
    assert numbers(bed.sent) == [list(range(10)), [100, 101, 102, 103, 104]]
    first, second = (at - 1000 for at, _ in bed.attempts)
    assert 110 <= first < 112
    assert 210 <= second < 212


async def test_all_n_are_sent_at_once_and_none_before() -> None:
    bed = Gathering({"complete": {"count": 4}})
    async with bed.running():
        for n in range(3):
            await bed.send(numbered(n))
        await asyncio.sleep(23 * 3600)
        assert not bed.jobs
        await bed.send(numbered(3))
        await asyncio.sleep(1)
        assert numbers(bed.sent) == [[0, 1, 2, 3]]
        await bed.idle()


async def test_a_marker_closes_its_folder_alone_and_what_is_behind_it_in_time_is_in() -> None:
    bed = Gathering(MARKED)
    async with bed.running():
        await bed.send(numbered(1, "/in/a"))
        await bed.send(numbered(2, "/in/b"))
        await bed.send(done("/in/a"))
        await asyncio.sleep(4)
        await bed.send(numbered(3, "/in/a"))
        await asyncio.sleep(2)
        assert numbers(bed.sent) == [[1, 3]]
        await asyncio.sleep(3600)
        assert len(bed.jobs) == 1
        await bed.send(done("/in/b"))
        await bed.idle()
    assert numbers(bed.sent) == [[1, 3], [2]]
    assert bed.value("bridge_windows_closed_total", service="plants", reason="complete") == 2


async def test_the_marker_is_taken_whatever_when_says_and_is_not_in_what_is_sent() -> None:
    bed = Gathering({"when": 'subject.endsWith(".nc") && data.n > 0', **MARKED})
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(numbered(0))
        await bed.send(done())
        await bed.idle()
    assert numbers(bed.sent) == [[1]]
    assert bed.outcomes[done().id] is Outcome.PARKED
    assert bed.outcomes[numbered(0).id] is Outcome.FILTERED


async def test_a_marker_with_no_file_makes_no_job() -> None:
    bed = Gathering(MARKED)
    async with bed.running():
        await bed.send(done())
        await bed.idle()
        await bed.send(done())
        await bed.idle()
    assert not bed.jobs


async def test_a_file_that_comes_after_its_folder_was_sent_waits_in_another_and_is_counted() -> None:
    bed = Gathering(MARKED)
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(done())
        await bed.idle()
        await bed.send(numbered(2))
        await bed.send(numbered(3))
        await asyncio.sleep(3600)
        assert numbers(bed.sent) == [[1]]
        assert bed.value("bridge_window_members_late_total", service="plants") == 2
        await bed.idle()
    assert numbers(bed.sent) == [[1], [2, 3]]
    assert bed.value("bridge_windows_closed_total", service="plants", reason="incomplete") == 1


async def test_what_is_not_complete_in_time_is_a_dead_letter_where_that_is_wanted_and_replays_as_one() -> (
    None
):
    bed = Gathering({"complete": {"count": 4, "within": "1h", "then": "dead-letter"}})
    async with bed.running():
        for n in range(3):
            await bed.send(numbered(n))
        await bed.idle()
        assert not bed.jobs
        assert numbers(bed.dead) == [[0, 1, 2]]
        (row,) = bed.connection.execute("SELECT cause, detail, service FROM kept").fetchall()
        assert row == ("incomplete", "3 events were there when its time was over, and not all", "plants")


async def test_an_event_that_comes_again_is_in_no_second_window() -> None:
    bed = Gathering({"merge": {"window": "60s", "remember": "1h"}})
    async with bed.running():
        await bed.send(numbered(1))
        await asyncio.sleep(1)
        await bed.send(numbered(1))
        await asyncio.sleep(1)
        assert bed.keeper.count("window") == 1
        await bed.idle()
        await bed.send(numbered(1))
        await asyncio.sleep(1)
        assert bed.outcomes[numbered(1).id] is Outcome.FILTERED
        assert bed.value("bridge_events_filtered_total", source="uploads", reason="merged") == 1
        await asyncio.sleep(3600)
        await bed.send(numbered(2))  # with what is sent, what is over is forgotten
        await bed.idle()
        await bed.send(numbered(1))
        await bed.idle()
    assert numbers(bed.sent) == [[1], [2]]
    assert len(bed.attempts) == 3  # the last one is a duplicate for OSCAR: its identity tells who is in it


async def test_what_is_too_large_for_one_event_is_parted() -> None:
    bed = Gathering({"complete": {"count": 100}, "merge": {"as": "text"}}, event_bytes=200)
    async with bed.running():
        for n in range(100):
            await bed.send(numbered(n))
        await bed.idle()
    assert list(chain.from_iterable(numbers(bed.sent))) == list(range(100))
    assert all(len(event.data) <= 200 for event in bed.jobs.values())
    assert len(bed.jobs) == 5  # 22 of 8 or 9 bytes fit
    assert bed.value("bridge_windows_closed_total", service="plants", reason="complete") == 1


async def test_one_that_is_too_large_by_itself_holds_up_no_other() -> None:
    bed = Gathering({"merge": {"window": "10s"}}, event_bytes=200)
    large = Event(id="large", source="uploads", type="test", data=b'{"n": -1, "x": "%s"}' % (b"x" * 500))
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(large)
        await bed.send(numbered(2))
        await bed.idle()
    assert numbers(bed.sent) == [[-1], [1], [2]]  # its attempt tells that it is too large


async def test_a_full_store_holds_the_source_until_there_is_room() -> None:
    bed = Gathering({"merge": {"window": "10s"}})
    async with bed.running():
        bed.keeper.no_room = True
        await bed.send(numbered(1))
        await asyncio.sleep(60)
        assert not bed.outcomes
        bed.keeper.no_room = False
        await bed.idle()
    assert numbers(bed.sent) == [[1]]


async def test_windows_go_on_over_a_stop_and_time_in_which_nobody_listened_is_no_quiet() -> None:
    bed = Gathering({"quiet": "30s"})
    async with bed.running():
        await bed.send(numbered(1))
        await asyncio.sleep(20)
    await asyncio.sleep(3600)
    async with bed.running():
        await asyncio.sleep(20)
        assert not bed.jobs
        await bed.send(numbered(2))
        await bed.idle()
    assert numbers(bed.sent) == [[1, 2]]


@pytest.mark.parametrize("route", [{"quiet": "30s"}, {**MARKED, "quiet": "30s"}])
async def test_a_source_that_is_away_is_not_quiet(route: dict[str, Any]) -> None:
    bed = Gathering(route)
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(done())
        await asyncio.sleep(10)
        bed.windows.listens("uploads", False)
        await asyncio.sleep(3600)
        bed.windows.listens("uploads", True)
        await asyncio.sleep(20)
        assert not bed.jobs
        await bed.send(numbered(2))
        await asyncio.sleep(31)
        assert len(bed.jobs) == 1
        await bed.idle()
    assert [each for each in numbers(bed.sent)[0] if each > 0] == [1, 2]


async def test_what_is_full_or_late_does_not_wait_for_a_source_that_is_away() -> None:
    bed = Gathering({"quiet": "30s", "merge": {"window": "60s"}})
    async with bed.running():
        bed.windows.listens("uploads", False)
        await bed.send(numbered(1))
        await asyncio.sleep(66)
        assert numbers(bed.sent) == [[1]]


async def test_a_changed_route_goes_on_with_its_windows_by_what_it_says_now() -> None:
    bed = Gathering({"merge": {"window": "1h", "as": "text"}})
    async with bed.running():
        await bed.send(numbered(1))
        await asyncio.sleep(1)
    bed.configure({"merge": {"window": "10s", "as": "json"}, "when": "data.n > 0"})
    async with bed.running():
        await bed.send(numbered(2))
        await asyncio.sleep(12)
        await bed.idle(within=0)
    assert [event.data for event in bed.jobs.values()] == [b'{"events":[{"n": 1},{"n": 2}]}']


async def test_windows_of_a_route_that_is_gone_are_sent_as_they_are() -> None:
    bed = Gathering({"complete": {"count": 10, "then": "dead-letter"}, "merge": {"as": "text"}})
    async with bed.running():
        await bed.send(numbered(1))
        await bed.send(numbered(2))
        await asyncio.sleep(1)
    bed.configure({})
    async with bed.running():
        await bed.idle(within=5)
        assert bed.value("bridge_windows_closed_total", service="plants", reason="route_gone") == 1
    assert [event.data for event in bed.jobs.values()] == [b'{"n": 1}\n{"n": 2}']


async def test_the_same_merged_event_is_tried_again_after_a_kill() -> None:
    """The kill is between OSCAR's acceptance and the moment at which the bridge hears of it."""
    refused: list[str] = []

    def answer(event: Event) -> Answer:
        refused.append(event.id)
        return UNAVAILABLE if len(refused) < 3 else ACCEPTED

    bed = Gathering({"merge": {"window": "10s"}}, answer=answer)
    async with bed.running():
        for n in range(3):
            await bed.send(numbered(n))
        await asyncio.sleep(10.5)
    async with bed.running():
        await bed.idle()
    assert len(set(refused)) == 1
    assert numbers(bed.sent) == [[0, 1, 2]]


NOTIFICATION = {"eventSource": "aws:s3", "s3": {"object": {"key": "a%20b"}}}


@pytest.mark.parametrize(
    ("merge", "datas", "reads_all", "expected"),
    [
        ({}, [b'{"a": 1.10}', b"[1]"], False, b'{"events":[{"a": 1.10},[1]]}'),
        ({}, [b"\xff", b"", b'"x"'], False, b'{"events":[{"data_base64":"/w=="},{"data_base64":""},"x"]}'),
        ({}, [b"NaN", b"1 2"], False, b'{"events":[{"data_base64":"TmFO"},{"data_base64":"MSAy"}]}'),
        ({"as": "text"}, [b"a", b"b", b"\xff"], False, b"a\nb\n\xff"),
        ({"as": "text", "demarcator": "--"}, [b"a", b"b"], False, b"a--b"),
        ({"as": "text", "demarcator": ""}, [b"a", b"b"], False, b"ab"),
        (
            {},
            [b'{"Records":[{"a":1}]}', b'{"Records": [{"b":2}]}'],
            True,
            b'{"Records":[{"a":1},{"b":2}]}',
        ),
        (
            {},
            [b'{"Records":[{"a":1}]}', b'{"Records": [{"b":2}]}'],
            False,
            b'{"events":[{"Records":[{"a":1}]},{"Records": [{"b":2}]}]}',
        ),
        ({}, [b'{"Records":[{"a":1}]}', b"{}"], True, b'{"events":[{"Records":[{"a":1}]},{}]}'),
        ({}, [b'{"Records":[]}', b'{"Records":[1]}'], True, b'{"events":[{"Records":[]},{"Records":[1]}]}'),
    ],
)
async def test_what_is_put_together_is_what_was_received(
    merge: dict[str, Any], datas: list[bytes], reads_all: bool, expected: bytes
) -> None:
    bed = Gathering({"merge": {"window": "10s", **merge}}, reads_all_records=reads_all)
    async with bed.running():
        for number, data in enumerate(datas):
            await bed.send(Event(id=str(number), source="uploads", type="test", data=data))
        await bed.idle()
    (event,) = bed.jobs.values()
    assert event.data == expected
    assert event.attributes["members"] == str(len(datas))


# Whatever happens


ROUTES = (
    {"merge": {"window": "20s", "max_events": 4}},
    {"merge": {"window": "20s", "max_bytes": 40, "as": "text"}},
    {"quiet": "8s"},
    {"quiet": "8s", "merge": {"max_events": 3}},
    {"complete": {"count": 3, "within": "60s"}},
    {"complete": {"count": 3, "within": "60s", "then": "dead-letter"}},
    {**MARKED, "merge": {"as": "text"}},
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "file", "done", "again"]),
        st.sampled_from(["/in/a", "/in/b"]),
        st.sampled_from([0.0, 0.0, 0.1, 3.0, 30.0]),
    ),
    max_size=25,
)


@given(
    route=st.sampled_from(ROUTES),
    steps=STEPS,
    kills=st.lists(st.integers(1, 25), max_size=6),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=120, deadline=None)
def test_every_event_is_in_exactly_one_accepted_job_whatever_is_killed(
    route: dict[str, Any], steps: list[tuple[str, str, float]], kills: list[int], seed: int
) -> None:
    dice = random.Random(seed)

    async def play() -> None:
        bed = Gathering(
            route,
            event_bytes=60,
            kill_at=[(kill,) for kill in kills],
            answer=lambda _: ACCEPTED if dice.random() < 0.8 else UNAVAILABLE,
        )
        left, sent = list(steps), list[Event]()
        while True:
            async with bed.running():
                while left and not bed.keeper.killed.is_set():
                    what, folder, pause = left.pop(0)
                    if what == "again" and sent:
                        await bed.send(dice.choice(sent))
                    elif what == "done":
                        await bed.send(done(folder, -len(left) - 1))
                    else:
                        sent.append(numbered(len(sent), folder))
                        await bed.send(sent[-1])
                    await asyncio.sleep(pause)
                await bed.idle()
                if not bed.keeper.killed.is_set() and not left:
                    break
        went = sorted(chain.from_iterable(numbers([*bed.sent, *bed.dead])))
        assert [number for number in went if number >= 0] == list(range(len(sent)))
        assert not bed.keeper.count("window")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())


# Ten thousand files


FOLDERS, FILES = 500, 20


async def test_ten_thousand_files_in_order_are_one_job_a_folder_none_early_and_none_twice() -> None:
    """As dCache tells them: in order, but for what look-ups overtake."""
    bed = Gathering(MARKED)
    dice = random.Random(11)
    events = [numbered(f * FILES + n, f"/in/{f}") for f in range(FOLDERS) for n in range(FILES)]
    told: list[Event] = []
    for folder in range(FOLDERS):
        own = [*events[folder * FILES : (folder + 1) * FILES], done(f"/in/{folder}", -folder - 1)]
        late = own.pop(dice.randrange(FILES))  # its look-up took longer
        told += [*own, late]
    await _play(bed, told, pause=0.01)
    assert numbers(bed.sent) == sorted(list(range(f * FILES, (f + 1) * FILES)) for f in range(FOLDERS))
    assert len(bed.attempts) == FOLDERS
    assert bed.value("bridge_window_members_late_total", service="plants") == 0


async def test_ten_thousand_files_in_no_order_and_some_twice_are_each_in_one_job() -> None:
    """As SQS tells them."""
    bed = Gathering(MARKED)
    dice = random.Random(12)
    events = [numbered(f * FILES + n, f"/in/{f}") for f in range(FOLDERS) for n in range(FILES)]
    told = [*events, *(done(f"/in/{f}", -f - 1) for f in range(FOLDERS)), *dice.sample(events, 500)]
    dice.shuffle(told)
    await _play(bed, told, pause=0.01)
    assert sorted(chain.from_iterable(numbers(bed.sent))) == list(range(FOLDERS * FILES))


async def _play(bed: Gathering, told: list[Event], *, pause: float) -> None:
    async with bed.running():
        began = now()
        for at, event in enumerate(told):
            await bed.send(event)
            if at % 10 == 9:
                await asyncio.sleep(pause)
        await bed.idle()
        assert not bed.unsettled
        assert now() > began
