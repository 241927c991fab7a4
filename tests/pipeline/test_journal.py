"""Whatever becomes of an event, it leaves its line in the journal; a filtered one says why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.jobs import JobSeen, Phase
from bridge.core.ports import Answer
from bridge.pipeline import windows
from bridge.pipeline.context import View
from bridge.pipeline.expression import Expression, NoMatch, Unroutable
from bridge.pipeline.intake import Intake
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now
from tests.pipeline.gathering import Gathering
from tests.pipeline.routing import House, route
from tests.pipeline.scripted import (
    ACCEPTED,
    DUPLICATE,
    REFUSED,
    REJECTED,
    UNAVAILABLE,
    Bench,
    MemoryJournal,
    ScriptedDestination,
    event,
    settled,
)


async def one_at_a_lane(*answers: Answer, **more: Any) -> tuple[Bench, list[dict[str, Any]]]:
    """Return what is written of one event to which the service answers so, at last always the same."""
    left = list(answers)
    bench = Bench(ScriptedDestination(lambda _: left.pop(0) if len(left) > 1 else left[0]), **more)
    delivery = Delivery(event("a"))
    async with bench.running():
        await bench.put([delivery])
        await settled([delivery])
        if delivery.outcome is Outcome.PARKED:
            await asyncio.sleep(3600)
    return bench, [{**line, "at": line.get("at") is not None} for line in bench.journal.lines]


async def test_the_straight_way_is_one_line() -> None:
    began = now()
    bench = Bench(ScriptedDestination(seconds=2.0))
    delivery = Delivery(event("a"))
    async with bench.running():
        await bench.put([delivery])
        await settled([delivery])
    assert bench.journal.lines == [
        {
            "what": "accepted",
            "id": "a",
            "service": "plants",
            "at": pytest.approx(began + 2.0),
            "since": pytest.approx(began),
            "job": "job-a",
        }
    ]


async def test_each_failed_attempt_is_a_line_with_its_cause() -> None:
    _, lines = await one_at_a_lane(UNAVAILABLE, UNAVAILABLE, ACCEPTED)
    assert [(line["what"], line["attempts"]) for line in lines] == [
        ("failed", 1),
        ("failed", 2),
        ("accepted", 3),
    ]
    assert lines[0]["cause"] == "http_502"
    assert lines[0]["detail"] == "no backend"
    assert lines[0]["job"] == lines[2]["job"] == "job-a"


async def test_a_duplicate_is_told_as_one() -> None:
    _, lines = await one_at_a_lane(DUPLICATE)
    assert [line["what"] for line in lines] == ["duplicate"]


async def test_a_dead_letter_tells_its_cause() -> None:
    _, (line,) = await one_at_a_lane(REJECTED)
    assert (line["what"], line["cause"], line["detail"]) == ("dead", "http_413", "body too large")
    assert (line["service"], line["attempts"]) == ("plants", 1)


async def test_a_parked_event_returns_and_is_accepted() -> None:
    bench, lines = await one_at_a_lane(*[REFUSED] * 20, ACCEPTED, park=True)
    told = [line["what"] for line in lines]
    assert told[0] == "failed"
    assert told.index("parked") < told.index("returned") < told.index("accepted") == len(told) - 1
    assert {line["id"] for line in lines} == {"a"}
    parked = lines[told.index("parked")]
    assert parked["attempts"] == told.index("parked")
    assert bench.keeper.rows == {}


async def test_what_is_given_back_upstream_is_a_line() -> None:
    journal = MemoryJournal()
    intake = Intake(10, 2**20, Metrics().source("uploads"), journal)
    given = [Delivery(event("a")), Delivery(event("b"))]
    intake.admit(given)
    given[0].settle(Outcome.ACCEPTED)
    intake.release()
    assert [(line["what"], line["id"]) for line in journal.lines] == [("released", "b")]


async def test_at_debug_there_is_a_line_in_the_log_for_each_that_is_accepted() -> None:
    with capture_logs() as logs:
        await one_at_a_lane(ACCEPTED)
    (told,) = [entry for entry in logs if entry["event"] == "accepted"]
    assert {name: told[name] for name in ("log_level", "id", "job", "service", "source", "subject")} == {
        "log_level": "debug",
        "id": "a",
        "job": "job-a",
        "service": "plants",
        "source": "uploads",
        "subject": None,
    }


async def test_without_debug_the_log_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ScriptedDestination())
    bench.lane._endings._tells_each = False
    delivery = Delivery(event("a"))
    with capture_logs() as logs:
        async with bench.running():
            await bench.put([delivery])
            await settled([delivery])
    assert logs == []


async def filtered(*routes: RouteConfig, data: bytes) -> list[dict[str, Any]]:
    house = House(*routes, plants=ACCEPTED)
    assert await house.send(event("a", data)) is Outcome.FILTERED
    assert [line["what"] for line in house.journal.lines] == ["filtered"]
    return house.journal.lines


@pytest.mark.parametrize(
    ("when", "data", "told"),
    [
        ("data.size > 0", b'{"size": 0}', "`data.size > 0` does not hold"),
        ("data.size > 0", b"{}", "`data.size > 0`: there is no `size`"),
        ("data.size > 0 && data.b", b'{"size": 0, "b": true}', "`data.size > 0` does not hold"),
        ("data.size > 0 && data.b", b'{"b": false}', "`data.b` does not hold"),
        ("data.b && data.size > 0", b'{"b": true}', "`data.size > 0`: there is no `size`"),
        ("(data.b && (data.size > 0))", b'{"size": 0, "b": true}', "`(data.size > 0)` does not hold"),
        ("data.b && (data.c || data.b) // x", b'{"c": 1, "b": false}', "`data.b` does not hold"),
        ("data.b && data.c || data.b", b'{"b": false}', "`data.b && data.c || data.b` does not hold"),
        (
            "data.b ? data.c && true : data.b",
            b'{"b": false}',
            "`data.b ? data.c && true : data.b` does not hold",
        ),
        ("data.s == '&& false' && data.b", b'{"s": "&& false", "b": false}', "`data.b` does not hold"),
    ],
)
async def test_a_filtered_event_tells_which_part_of_the_condition_did_not_hold(
    when: str, data: bytes, told: str
) -> None:
    (line,) = await filtered(route(when=when), data=data)
    assert line["detail"] == f"plants: {told}"
    assert line["cause"] == ("missing_key" if "there is no" in told else "no_match")
    assert line["id"] == "a"
    assert "service" not in line


async def test_a_filtered_event_tells_it_of_each_route() -> None:
    routes = (
        route(when="data.size > 9 && true"),
        route("data.to", allow=["plants"]),
        route("data.nowhere", allow=["plants"]),
        route(merge={"key": "data.key", "window": "1m"}),
    )
    (line,) = await filtered(*routes, data=b'{"size": 1, "to": "flood"}')
    assert line["cause"] == "not_allowed"
    assert line["detail"].split("; ") == [
        "plants: `data.size > 9` does not hold",
        "data.to: `data.to` gave 'flood'",
        "data.nowhere: `data.nowhere`: there is no `nowhere`",
        "plants: `data.key`: there is no `key`",
    ]


async def test_a_filtered_event_is_read_as_its_route_decodes_it() -> None:
    (line,) = await filtered(
        route(when="data.a && data.b", decode="base64"), data=b"eyJhIjogdHJ1ZSwgImIiOiBmYWxzZX0="
    )
    assert line["detail"] == "plants: `data.b` does not hold"


@pytest.mark.parametrize(
    ("routes", "data", "fault", "told"),
    [
        ([route(when="data.size + 1 > 'a'")], b'{"size": 1}', None, ("plants", "route")),
        ([route(decode="base64")], b"\xff", None, ("", "undecodable")),
        ([route()], b"{}", "can't be read", ("", "unreadable")),
    ],
)
async def test_a_dead_letter_of_a_route_is_a_line(
    routes: list[Any], data: bytes, fault: str | None, told: tuple[str, str]
) -> None:
    house = House(*routes, plants=ACCEPTED)
    assert await house.send(event("a", data), fault=fault) is Outcome.DEAD_LETTERED
    (line,) = house.journal.lines
    assert (line["what"], (line.get("service", ""), line["cause"])) == ("dead", told)
    assert line["detail"]


_ATOMS = (
    "data.a",
    "data.b",
    "data.c",
    "has(data.c)",
    "(data.a || data.b)",
    "!data.a",
    "[1].exists(x, data.b && x > 0)",
)
_conditions = st.recursive(
    st.sampled_from(_ATOMS),
    lambda inner: (
        st.builds("{} {} {}".format, inner, st.sampled_from(("&&", "||")), inner)
        | st.builds("({})".format, inner)
        | st.builds("({} ? {} : {})".format, inner, inner, inner)
    ),
    max_leaves=8,
)


@given(_conditions, st.dictionaries(st.sampled_from("abc"), st.booleans()))
def test_the_part_named_is_one_that_does_not_hold(condition: str, data: dict[str, bool]) -> None:
    """And where none is, the condition is no row of parts."""
    whole = Expression(condition)
    view = View(event("a", str(data).replace("'", '"').lower().encode()), whole.names, None, False)

    def value(of: Expression) -> object:
        try:
            return of.evaluate(view)
        except (NoMatch, Unroutable) as error:
            return type(error)

    parts = whole._parts
    if parts:
        values = [value(part) for part in parts]
        assert (value(whole) is True) == all(each is True for each in values)
        if value(whole) in (False, NoMatch):
            named = whole.part_not_true(view)
            assert any(
                named.startswith(f"`{part.source}`")
                for part, each in zip(parts, values, strict=True)
                if each is not True
            )


@pytest.fixture
def _in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time does not wait for other threads."""

    async def directly(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    monkeypatch.setattr(windows, "to_thread", directly)


def in_folder(name: str, folder: str = "/in") -> Event:
    return Event(id=name, source="uploads", type="test", subject=f"{folder}/{name}", data=b"{}")


@pytest.mark.usefixtures("_in_this_thread")
async def test_events_sent_together_tell_in_which_one() -> None:
    bed = Gathering({"merge": {"window": "60s", "max_events": 3}})
    async with bed.running():
        for name in ("a", "b"):
            await bed.send(in_folder(name))
        await asyncio.sleep(100)
        await bed.send(in_folder("a"))
        await asyncio.sleep(100)
    (merged,) = bed.jobs
    assert bed.journal.of("a") == ["waits", "sent", "filtered"]
    assert bed.journal.of("b") == ["waits", "sent"]
    for line in bed.journal.lines:
        assert line["service"] == "plants"
        assert line["route"] == "all"
        assert line.get("into") == (merged if line["what"] == "sent" else None)
        assert line.get("cause") == ("merged" if line["what"] == "filtered" else None)


@pytest.mark.usefixtures("_in_this_thread")
async def test_a_window_that_is_never_complete_is_a_dead_letter_of_which_its_members_tell() -> None:
    bed = Gathering({"complete": {"count": 3, "within": "60s", "then": "dead-letter"}})
    async with bed.running():
        await bed.send(in_folder("a"))
        await asyncio.sleep(100)
    assert bed.journal.of("a") == ["waits", "sent"]
    waits, sent, dead = bed.journal.lines
    assert waits["detail"] == "/in"
    assert dead["id"] == sent["into"]
    assert (dead["what"], dead["cause"]) == ("dead", "incomplete")


class Maker:
    """Names jobs by their events."""

    afterwards = 1.0

    def job_of(self, one: Event) -> str:
        return f"job-{one.id}"


async def test_the_end_of_a_job_that_is_followed_is_a_line() -> None:
    bench = Bench(ScriptedDestination(), maker=Maker(), active_jobs=4, on_failure="dead-letter")
    given = [Delivery(event("a")), Delivery(event("b"))]
    async with bench.running():
        await bench.put(given)
        await settled(given)
        await asyncio.sleep(1)
        watch = bench.lane.jobs
        assert watch is not None
        watch.sweep_began()
        watch.saw([JobSeen("job-a", Phase.SUCCEEDED), JobSeen("job-b", Phase.FAILED)], now())
        await watch.failed("job-b", "no such file")
    ended = [line for line in bench.journal.lines if line["what"] == "ended"]
    assert [(line["id"], line["job"], line["cause"]) for line in ended] == [
        ("a", "job-a", "succeeded"),
        ("b", "job-b", "failed"),
    ]
    assert bench.journal.of("b") == ["accepted", "ended", "dead"]
    assert bench.journal.lines[-1]["detail"] == "no such file"


async def test_an_event_whose_job_is_listed_is_a_duplicate_without_an_attempt() -> None:
    bench = Bench(ScriptedDestination(REFUSED), maker=Maker(), active_jobs=4)
    delivery = Delivery(event("a"))
    async with bench.running():
        await bench.put([delivery])
        await asyncio.sleep(1)
        watch = bench.lane.jobs
        assert watch is not None
        watch.sweep_began()
        watch.saw([JobSeen("job-a", Phase.RUNNING)], now())
        assert await settled([delivery]) == [Outcome.ACCEPTED]
    (line,) = [line for line in bench.journal.lines if line["what"] == "duplicate"]
    assert (line["id"], line["job"]) == ("a", "job-a")
