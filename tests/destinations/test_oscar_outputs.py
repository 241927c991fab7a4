"""`success: output`: which jobs have left an output, by the sandbox's bucket and both its supervisors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.core.jobs import JobOutcome, JobSeen, Phase
from bridge.destinations.oscar import outputs as module
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.outputs import Outputs, Place, _Written, _written_at, input_name, places_of
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.testing import until
from tests.destinations.fake_oscar import service

ADMIN = {"type": "basic", "username": "oscar", "password": "sandbox"}
OUTPUT = [{"storage_provider": "minio.default", "path": "results/out"}]
SUCCEEDED, FAILED, UNJUDGED = JobOutcome.SUCCEEDED, JobOutcome.FAILED, JobOutcome.UNJUDGED


def event(subject: str | None = None, data: bytes = b"{}") -> Event:
    return Event(id=f"{subject}", source="uploads", type="test", subject=subject, data=data)


def seen(name: str, started: float | None = 100.0, finished: float | None = 110.0) -> JobSeen:
    return JobSeen(name, Phase.ENDED, started, finished)


def written(found: Sequence[tuple[str, float]]) -> _Written:
    objects = _Written()
    for key, when in found:
        objects.add(key, when)
    return objects


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_SECONDS", 0.01)


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(jobs_a_page=3)) as cluster:
        cluster.add_service("plants", output=OUTPUT)
        yield cluster


class Judged(dict[str, JobOutcome]):
    """What was told of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0
        self.where = ""

    async def __call__(self, outcomes: Sequence[tuple[JobSeen, JobOutcome]], where: str) -> None:
        self.times += 1
        self.where = where
        self.update({each.name: outcome for each, outcome in outcomes})


@asynccontextmanager
async def judging(
    oscar: SandboxOscar, *jobs: tuple[JobSeen, Event]
) -> AsyncIterator[tuple[Judged, OscarService, list[tuple[str, str]]]]:
    """Have `jobs` judged; give what is told, and the pages that were asked for."""
    judged = Judged()
    pages: list[tuple[str, str]] = []
    async with service(oscar.url, ADMIN) as plants:
        plain = plants._cluster.bucket_page

        async def counted(bucket: str, token: str) -> dict[str, Any]:
            pages.append((bucket, token))
            return await plain(bucket, token)

        plants._cluster.bucket_page = counted  # type: ignore[method-assign]
        outputs = Outputs(plants._cluster, plants, judged)
        task = asyncio.create_task(outputs.run())
        for one, of in jobs:
            outputs.add(one, of)
        try:
            yield judged, plants, pages
            await until(lambda: len(judged) == len(jobs) or task.done(), seconds=30)
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled(), task.exception()


def test_outputs_are_where_the_definition_says() -> None:
    definition: dict[str, Any] = {
        "output": [
            {"storage_provider": "minio", "path": "results"},
            {"storage_provider": "MINIO.default", "path": "/results/a/b/ "},
            {"storage_provider": "minio.default", "path": "results"},
            {"storage_provider": "minio.other", "path": "x"},
            {"storage_provider": "s3.default", "path": "x"},
            {"storage_provider": "webdav.dcache", "path": "/data"},
        ]
    }
    wanted = [Place("results", ""), Place("results", "a/b/")]
    assert places_of(definition) == (wanted, ["minio.other", "s3.default", "webdav.dcache"])
    definition |= {"isolation_level": "user", "bucket_list": ["results-ana"]}
    assert places_of(definition)[0] == [
        Place("results", ""),
        Place("results-ana", ""),
        Place("results", "a/b/"),
        Place("results-ana", "a/b/"),
    ]
    assert places_of({"output": None}) == places_of({}) == ([], [])
    odd = {"output": [{"storage_provider": "minio", "path": "results/\ud800"}], "isolation_level": "USER"}
    for buckets in (5, "ana", None):
        assert places_of(odd | {"bucket_list": buckets}) == ([Place("results", "?/")], [])
    assert places_of(odd | {"bucket_list": [["ana"]]})[0][1:] == [Place("['ana']", "?/")]


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (None, None),
        ("", None),
        ("sensor-7", None),
        ("uploads/2026/img 7.jpg", "img 7"),
        ("img.tar.gz", "img"),
        ("/data/in/run.7.nc", "run.7"),
        ("/data/in/.hidden", ".hidden"),
        ("cms:file1", "file1"),
        ("folder/", "folder"),
        ("/", None),
    ],
)
def test_the_name_of_the_file_that_is_fetched_is_that_of_the_events_subject(
    subject: str | None, name: str | None
) -> None:
    assert input_name(event(subject)) == name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01 00:00:10 +0000 UTC", 1767225610.0),
        ("2026-01-01 00:00:10.5 +0000 UTC", 1767225610.5),
        ("2026-01-01 00:00:10.123 +0000 UTC", 1767225610.123),
    ],
)
def test_times_are_read_as_go_writes_them(text: str | None, seconds: float) -> None:
    assert _written_at(text) == pytest.approx(seconds)


def test_an_output_has_the_name_of_its_job_or_of_its_input_between_other_signs() -> None:
    objects = written([("img1.png", 105.0), ("deep/img10-mask.png", 105.0), ("xplants-7.json", 105.0)])
    for name, found in {"img1": True, "img10": True, "img": False, "mask": True, "mg1": False}.items():
        assert objects.has_output_of(seen("j"), event(f"in/{name}.jpg")) is found, name
    assert not objects.has_output_of(seen("plants-7"), event("in/other.jpg"))
    assert written([("a_plants-7.json", 105.0)]).has_output_of(seen("plants-7"), event("in/other.jpg"))


def test_an_output_was_written_since_its_job_began() -> None:
    for when, found in {97.0: False, 99.0: True, 500.0: True}.items():
        assert written([("a.png", when)]).has_output_of(seen("j"), event("in/a.jpg")) is found, when
        assert written([("j.png", when)]).has_output_of(seen("j"), event()) is found, when


def test_where_the_event_names_no_file_an_output_is_what_was_written_while_the_job_ran() -> None:
    for when, found in {97.0: False, 99.0: True, 112.0: True, 114.0: False}.items():
        assert written([("x.json", when)]).has_output_of(seen("j"), event("sensor-7")) is found, when
    other = invocation_name("uploads", "other", "plants")
    assert not written([(f"{other}.json", 105.0)]).has_output_of(seen("j"), event())


_KEYS = st.text("ab1-./\n", min_size=1, max_size=6)


@given(st.lists(st.tuples(_KEYS, st.integers(90, 120))), _KEYS, _KEYS)
def test_the_search_finds_what_a_look_at_each_key_finds(
    found: list[tuple[str, int]], job: str, name: str
) -> None:
    def has(key: str, wanted: str) -> bool:
        key, wanted = f"\n{key.replace(chr(10), ' ')}\n", wanted.replace("\n", " ")
        return any(
            key.startswith(wanted, at) and not key[at - 1].isalnum() and not key[at + len(wanted)].isalnum()
            for at in range(1, len(key) - len(wanted))
        )

    of = event(f"in/{name}.x")
    wanted = input_name(of)
    assert wanted is not None
    slow = any(when >= 98 and (has(key, job) or has(key, wanted)) for key, when in found)
    assert written(found).has_output_of(seen(job), of) is slow


async def test_many_jobs_are_judged_with_one_listing_of_their_folder(oscar: SandboxOscar) -> None:
    now = time.time()
    for number in range(10):
        oscar.buckets.put(f"results/out/{number}.png", 1, now if number % 2 else now - 3600)
    for name in ("aaa", "out", "zzz"):
        for number in range(10):
            oscar.buckets.put(f"results/{name}/{number}0.png", 1)
    jobs = [(seen(f"j{n}", now - 5, now), event(f"in/{n}.jpg")) for n in range(10)]
    async with judging(oscar, *jobs) as (judged, _, pages):
        pass
    assert judged == {f"j{n}": SUCCEEDED if n % 2 else FAILED for n in range(10)}
    assert judged.times == 1
    assert judged.where == "results/out/"
    # 20 objects in pages of 3, and one that shows what is behind them: none of those before.
    assert len(pages) == 7


async def test_a_job_of_which_it_is_not_told_when_it_began_is_not_judged(oscar: SandboxOscar) -> None:
    async with judging(oscar, (seen("j", None, None), event())) as (judged, _, _):
        pass
    assert judged == {"j": UNJUDGED}


@pytest.mark.parametrize("output", [[], [{"storage_provider": "webdav.dcache", "path": "/data"}]])
async def test_what_oscar_does_not_list_is_told_once_and_judges_nothing(
    oscar: SandboxOscar, output: list[dict[str, str]]
) -> None:
    oscar.services.named("plants")[0].definition["output"] = output
    with capture_logs() as logs:
        async with judging(oscar, (seen("a"), event())) as (judged, plants, pages):
            pass
        async with judging(oscar, (seen("b"), event())):
            pass
        assert judged == {"a": UNJUDGED}
        assert pages == []
        outputs = Outputs(plants._cluster, plants, judged)
        outputs._places_until = float("inf")
        assert await outputs._judge([(seen("c"), event())]) == ("", [UNJUDGED])
    assert len([line for line in logs if "no output can be looked for" in line["event"]]) == 2


async def test_a_listing_that_fails_is_tried_again_and_then_given_up(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_SILENCE", 0.02)
    oscar.services.named("plants")[0].definition["output"] = [
        {"storage_provider": "minio", "path": "gone/out"}
    ]
    with capture_logs() as logs:
        async with judging(oscar, (seen("a"), event())) as (judged, _, pages):
            pass
    assert judged == {"a": UNJUDGED}
    told = [line for line in logs if line["event"] == "the outputs of jobs can't be listed"]
    assert len(told) == 5
    assert "NoSuchBucket" in told[0]["detail"]
    assert len(pages) == 10, "and each time from the first object, if it is for the token"


async def test_a_storage_with_other_tokens_is_listed_from_its_first_object(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_token_behind", lambda _key: "%%%")
    oscar.buckets.put("results/before/a.png", 1)
    oscar.buckets.put("results/out/a.png", 1)
    now = time.time()
    async with judging(oscar, (seen("j", now - 5, now), event("a.jpg"))) as (judged, _, _):
        pass
    assert judged == {"j": SUCCEEDED}


async def test_with_too_many_objects_those_not_found_are_not_judged(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PAGES", 2)
    for number in range(10):
        oscar.buckets.put(f"results/out/{number}.png", 1)
    now = time.time()
    jobs = [(seen(name, now - 5, now), event(f"{name}.jpg")) for name in ("1", "9")]
    with capture_logs() as logs:
        async with judging(oscar, *jobs) as (judged, _, _):
            pass
    assert judged == {"1": SUCCEEDED, "9": UNJUDGED}
    assert ["too many outputs" in line["event"] for line in logs].count(True) == 1


def test_the_search_for_a_job_among_very_many_objects_takes_milliseconds() -> None:
    dice = random.Random(1)
    objects = written(
        [(f"{dice.randrange(10**9)}/image-{dice.randrange(10**9)}.png", 105.0) for _ in range(21_000)]
    )
    began = time.process_time()
    for number in range(100):
        assert not objects.has_output_of(seen(f"job-{number}"), event(f"in/picture{number}.jpg"))
    assert (time.process_time() - began) / 100 < 0.02, "usually one"


async def test_a_time_that_is_not_understood_judges_nothing(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_SILENCE", 0.02)
    monkeypatch.setattr("bridge.sandbox.oscar.storage._go_time", lambda _seconds: "yesterday")
    oscar.buckets.put("results/out/a.png", 1)
    with capture_logs() as logs:
        async with judging(oscar, (seen("a"), event("a.jpg"))) as (judged, _, _):
            pass
    assert judged == {"a": UNJUDGED}
    assert "yesterday" in logs[0]["detail"]


@pytest.mark.parametrize("supervisor", ["python", "go"])
async def test_a_job_whose_script_failed_has_left_nothing_under_either_supervisor(supervisor: Any) -> None:
    script = 'echo done > "$TMP_OUTPUT_DIR/$JOB_UUID.txt"'
    async with SandboxOscar(Settings(supervisor=supervisor)) as oscar:
        oscar.add_service("plants", script, output=OUTPUT)
        oscar.faults.set(Fault(scripts={"bad": 3}), "plants")
        async with service(oscar.url, ADMIN) as plants:
            events = {name: event(name, f'{{"a":"{name}"}}'.encode()) for name in ("good", "bad")}
            for one in events.values():
                assert (await plants.prepare(one).attempt()).accepted
            await until(lambda: all(job.phase in ("Succeeded", "Failed") for job in oscar.jobs.all()))
            jobs = []
            for one in events.values():
                job = oscar.job(plants.job_of(one))
                assert job is not None
                jobs.append((seen(job.name, job.started // 1, job.finished // 1), one))
            assert [job.phase for job in oscar.jobs.all()].count("Failed") == (supervisor == "go")
        async with judging(oscar, *jobs) as (judged, _, _):
            pass
    assert list(judged.values()) == [SUCCEEDED, FAILED]
