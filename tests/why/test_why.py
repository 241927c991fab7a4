"""What a person reads who asks what became of a file: one command, whatever became of it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition

from bridge.core.delivery import Delivery
from bridge.core.identity import invocation_name
from bridge.core.ports import DeadLetter
from bridge.pipeline.intake import Intake
from bridge.sandbox.oscar import SandboxOscar
from bridge.store import Store
from bridge.store.history import Line
from bridge.telemetry.metrics import Metrics
from bridge.why import Fate, asking, in_hand
from bridge.why.name import Name
from tests.servers.tansu import Tansu
from tests.why.place import AT, FILE, ID, Place, event, make_job

JOB = invocation_name("uploads", ID, "plants")
ACCEPTED = {"what": "accepted", "service": "plants", "job": JOB, "received": AT - 1, "attempts": 1}
HEADING = f"{FILE}: event {ID} of uploads"
BEGINS = "which begins 2025-11-30 10:53:21+00:00"
RECEIVED = "  2025-11-30 10:53:20+00:00  received"


async def test_accepted(oscar: SandboxOscar, place: Place) -> None:
    oscar.settings.pending_seconds = 60
    await make_job(oscar)
    place.journal(ACCEPTED)
    assert await place.read("leaf-1.nc") == [
        HEADING,
        "  plants: accepted: its job waits on the cluster (Pending)",
        f"      job {JOB}",
        RECEIVED,
        f"  2025-11-30 10:53:21+00:00  plants: accepted as job {JOB}",
    ]


async def test_running(oscar: SandboxOscar, place: Place) -> None:
    oscar.settings.simulated_seconds = 60
    await make_job(oscar)
    place.journal(
        {"what": "failed", "service": "plants", "cause": "http_503", "detail": "503: try later"},
        {**ACCEPTED, "t": AT + 5, "attempts": 2},
    )
    heading, fate, job, *story = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.startswith("  plants: running: started 20")
    assert job == f"      job {JOB}"
    assert story == [
        RECEIVED,
        "  2025-11-30 10:53:21+00:00  plants: an attempt failed: http_503: 503: try later",
        f"  2025-11-30 10:53:26+00:00  plants: accepted at attempt 2 as job {JOB}",
    ]


async def test_succeeded_and_failed(oscar: SandboxOscar, place: Place) -> None:
    place.journal(
        ACCEPTED, {"what": "ended", "service": "plants", "job": JOB, "cause": "failed", "t": AT + 9}
    )
    assert await place.read("leaf-1.nc") == [
        HEADING,
        "  plants: failed: its job ended by 2025-11-30 10:53:30+00:00",
        f"      job {JOB}",
        RECEIVED,
        f"  2025-11-30 10:53:21+00:00  plants: accepted as job {JOB}",
        "  2025-11-30 10:53:30+00:00  plants: its job ended: failed",
    ], "though OSCAR has it no more"
    await make_job(oscar)
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate.startswith("  plants: succeeded: started 20"), "what OSCAR tells is newer"
    assert ", finished 20" in fate


async def test_the_stories_are_made_beside_the_loop_and_not_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, make = [], asking._shortened

    def made(lines: Sequence[Line]) -> list[dict[str, Any]]:
        threads.append(threading.current_thread())
        return make(lines)

    monkeypatch.setattr(asking, "_shortened", made)
    place.journal({"what": "filtered", "cause": "no_match", "detail": "route 1: data.size > 0 is false"})
    answer = await place.ask("leaf-1.nc")
    assert threads
    assert threading.main_thread() not in threads
    document = answer.document()
    assert json.dumps(document) == json.dumps(asdict(answer))
    assert document["events"][0]["story"] is answer.events[0].story


async def test_what_is_in_hand_is_looked_through_with_turns_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each look at the clock takes a millisecond here."""
    monkeypatch.setattr("bridge.why.hands.perf_counter", (each / 1000 for each in count()).__next__)
    turns = 0
    while_looking = []

    def unsettled() -> Iterator[Delivery]:
        for _ in range(30):
            while_looking.append(turns)
            yield Delivery(event())

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(others())
        intake = cast("Intake", SimpleNamespace(unsettled=unsettled()))
        hands = await in_hand([], [intake], Name(FILE))
        other.cancel()
    assert len(hands.events) == 1
    assert len(set(while_looking)) >= 10


async def test_filtered(place: Place) -> None:
    place.journal({"what": "filtered", "cause": "no_match", "detail": "route 1: data.size > 0 is false"})
    assert await place.read("leaf-1.nc") == [
        HEADING,
        "  filtered: no_match: route 1: data.size > 0 is false",
        "  2025-11-30 10:53:21+00:00  filtered: no_match: route 1: data.size > 0 is false",
    ]


async def test_parked(place: Place) -> None:
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.park(event(), "plants", attempts=3, first_attempt=AT)
    place.journal({"what": "parked", "service": "plants"})
    heading, fate, line = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.startswith("  plants: parked: since 20")
    assert fate.endswith(", after 3 attempts, until its service takes it")
    assert line == "  2025-11-30 10:53:21+00:00  plants: parked"


async def test_dead(place: Place) -> None:
    letter = DeadLetter(event=event(), service="plants", cause="http_500", detail="500: no", attempts=8)
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.bury(letter)
    place.journal(
        {"what": "dead", "service": "plants", "cause": "http_500", "detail": "500: no", "attempts": 8}
    )
    heading, fate, line = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.startswith("  plants: dead letter: number 1, since 20")
    assert fate.endswith(", after 8 attempts: http_500: 500: no")
    assert line == "  2025-11-30 10:53:21+00:00  plants: dead letter, after 8 attempts: http_500: 500: no"


async def test_a_dead_letter_that_is_not_kept_any_more(place: Place) -> None:
    dead = {"what": "dead", "service": "plants", "cause": "http_500", "detail": "500: no", "attempts": 8}
    place.journal(dead)
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate == "  plants: dead letter: http_500: 500: no; it is not kept any more"
    place.journal(dead, {"what": "discarded", "service": "plants", "t": AT + 60})
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate == "  plants: discarded: its dead letter was deleted by a person"


async def test_too_large(place: Place) -> None:
    detail = "the event takes 140022 bytes and the service takes 131065"
    letter = DeadLetter(event=event(), service="plants", cause="too_large", detail=detail, attempts=1)
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.bury(letter)
    heading, fate = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.endswith(f", after 1 attempt: too_large: {detail}")


async def test_coalesced(oscar: SandboxOscar, place: Place) -> None:
    """Sent with others, or an earlier one of the same was."""
    job = await make_job(oscar, "merged-1")
    together = {"source": "uploads", "id": "merged-1", "subject": None, "key": None}
    place.journal(
        {"what": "waits", "service": "plants"},
        {"what": "sent", "service": "plants", "into": "merged-1", "t": AT + 60},
        {**ACCEPTED, **together, "job": job, "t": AT + 61},
    )
    heading, fate, named, *story = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.startswith("  plants: succeeded: sent with others as merged-1; started 20")
    assert named == f"      job {job}"
    assert story == [
        RECEIVED,
        "  2025-11-30 10:53:21+00:00  plants: waits to be sent with others",
        "  2025-11-30 10:54:21+00:00  plants: sent with others as merged-1",
        f"  2025-11-30 10:54:22+00:00  plants: accepted as job {job}",
    ]
    place.journal({"what": "filtered", "cause": "merged", "detail": "it was sent with others before"})
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate == "  filtered: merged: it was sent with others before"


async def test_duplicate(oscar: SandboxOscar, place: Place) -> None:
    await make_job(oscar)
    place.journal({**ACCEPTED, "what": "duplicate"})
    heading, fate, job, _, line = await place.read("leaf-1.nc")
    assert heading == HEADING
    assert fate.startswith(
        "  plants: succeeded: duplicate: OSCAR had its job before, and made no second one; started 20"
    )
    assert job == f"      job {JOB}"
    assert line == (
        f"  2025-11-30 10:53:21+00:00  plants: accepted before as job {JOB}: OSCAR made no second one"
    )


async def test_still_upstream(tansu: Tansu, place: Place, unique: str) -> None:
    await tansu.create_topic(unique)
    for key in (FILE, f"{FILE}2"):
        await tansu.produce(unique, [(key.encode(), b"1")])
    place.journal({"what": "filtered", "cause": "no_match", "subject": "other", "key": "other"})
    uploads = place.kafka(tansu.bootstrap_servers, unique)
    (first,) = await place.read("leaf-1.nc", sources={"uploads": uploads})
    group = f"the group {unique}"
    assert re.fullmatch(
        rf"still upstream: uploads: it is record {unique}/0/0@\d+, and {group} has not read it yet", first
    )
    assert await place.read(f"{unique}/0/1", sources={"uploads": uploads}) == [
        f"still upstream: uploads: it is record 1 of {unique}/0, and {group} has read nothing of it yet"
    ]


async def test_never_seen(tansu: Tansu, place: Place, unique: str) -> None:
    await tansu.create_topic(unique)
    sources = {
        "uploads": place.kafka(tansu.bootstrap_servers, unique),
        "bucket": {"type": "sqs", "queue": "q", "region": "eu-west-1"},
    }
    place.journal({"what": "filtered", "cause": "no_match", "subject": "other", "key": "other"})
    assert await place.read("leaf-1.nc", sources=sources) == [
        f"never seen: nothing of that name is in the journal, {BEGINS}, or kept",
        f"  uploads: the group {unique} has read all that Kafka has",
        "  bucket: a queue can't be searched: whether a message waits in it is not known",
    ]


async def test_older_than_the_journal(tansu: Tansu, place: Place, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"1", b"2"])
    await tansu.commit(unique, {TopicPartition(unique, 0): 2})
    place.journal({"what": "filtered", "cause": "no_match", "subject": "other", "key": "other"})
    sources = {"uploads": place.kafka(tansu.bootstrap_servers, unique)}
    group = f"the group {unique}"
    assert await place.read(f"{unique}/0/1@1764000000000", sources=sources) == [
        f"older than the journal, {BEGINS}: uploads: {group} has read {unique}/0 up to 2"
    ]


async def test_what_could_not_be_searched_in_time_is_not_said_never_to_have_come(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.journal(ACCEPTED)
    monkeypatch.setattr(asking, "_JOURNAL_SECONDS", -1.0)
    first, *_, last = await place.read("leaf-1.nc")
    assert first == "not known: not all could be searched in the time there was"
    assert last == "not looked at: all of the journal, in the time there was: give more of the name, or an id"


async def test_an_event_that_was_given_back_and_came_again_is_told_by_what_became_of_it_then(
    place: Place,
) -> None:
    failed = {"what": "failed", "service": "plants", "cause": "http_503"}
    place.journal(failed, {"what": "released", "t": AT + 1})
    _, *fates = (
        line for line in await place.read("leaf-1.nc") if line.startswith("  plants") or "given" in line
    )
    assert fates == [
        "  given back: its source gives it again",
        "  2025-11-30 10:53:22+00:00  given back to its source",
    ]
    place.journal(failed)
    _, fate, *_ = await place.read("leaf-1.nc")
    assert (
        fate == "  plants: given back: its last attempt failed, and it is not here: its source gives it again"
    )
    place.journal(failed, {"what": "released", "t": AT + 1}, {**ACCEPTED, "t": AT + 2})
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate.startswith("  plants: accepted: its job is not on the cluster any more")
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.park(event(), "plants")
    place.journal(failed, {"what": "released", "t": AT + 1})
    (story,) = (await place.ask("leaf-1.nc")).events
    assert [told.fate for told in story.fates] == [Fate.PARKED]


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("succeeded", "succeeded: its job ended by 2025-11-30 10:53:30+00:00"),
        ("gone", "gone: its job was deleted before anybody saw it end"),
        ("unjudged", "accepted: its job ended, and whether it left its output could not be told"),
        ("unlisted", "accepted: no listing has shown its job, and what became of it could not be told"),
    ],
)
async def test_what_became_of_a_job_that_oscar_has_no_more(place: Place, cause: str, told: str) -> None:
    place.journal(ACCEPTED, {"what": "ended", "service": "plants", "job": JOB, "cause": cause, "t": AT + 9})
    _, fate, *_ = await place.read("leaf-1.nc")
    assert fate == f"  plants: {told}"


async def test_an_event_that_goes_once_more_is_told_by_what_became_of_it_before(place: Place) -> None:
    """Until the journal has what becomes of the new one."""
    place.journal(ACCEPTED, {"what": "replayed", "into": f"{ID}+1", "t": AT + 60})
    _, fate, *story = await place.read("leaf-1.nc")
    assert fate.startswith("  plants: accepted: its job is not on the cluster any more")
    assert story[-1] == f"  2025-11-30 10:54:21+00:00  replayed as {ID}+1"
    new = {"id": f"{ID}+1", "t": AT + 61}
    place.journal(
        ACCEPTED,
        {"what": "replayed", "into": f"{ID}+1", "t": AT + 60},
        {"what": "filtered", "cause": "no_match", "detail": "plants: no", **new},
    )
    (story_of_both,) = (await place.ask("leaf-1.nc")).events
    assert [told.fate for told in story_of_both.fates] == [Fate.ACCEPTED, Fate.FILTERED]
