"""What became of one event at each service, by all that is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from bridge.core.identity import invocation_name
from bridge.core.jobs import JobOutcome
from bridge.core.ports import NO_LANE
from bridge.settings import Settings
from bridge.store.clock import date
from bridge.store.find import Kept, Traces, Waited
from bridge.store.history import Line
from bridge.store.schema import PARKED
from bridge.why.candidates import Candidate
from bridge.why.hands import Hands, InHand
from bridge.why.jobs import JobAnswer, Presence, Question


class Fate(StrEnum):
    """What became of an event at one service."""

    UNREAD = "unread"
    """Its source was told of it, and the bridge has still to find out what it is about."""
    IN_HAND = "in hand"
    """It is in a running bridge: it waits for an attempt, or one is under way."""
    WINDOW = "waits for others"
    """In the store, to be sent with others."""
    PARKED = "parked"
    DEAD = "dead letter"
    DISCARDED = "discarded"
    """It was a dead letter, and a person deleted it."""
    FILTERED = "filtered"
    """It goes to no service, or an earlier copy of it went."""
    RETURNED = "given back"
    """To its source, which gives it again."""
    ACCEPTED = "accepted"
    """OSCAR has taken it; its job waits, or its state is not known."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    GONE = "gone"
    """Its job was deleted before anybody saw it end."""
    NO_JOB = "no job"
    """The cluster has no job of its name, and nothing else is known."""
    UNKNOWN = "unknown"


NOTHING_KNOWN = frozenset((Fate.NO_JOB, Fate.UNKNOWN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of an event at one service."""

    service: str
    """Key of the service; empty where none was chosen."""
    fate: Fate
    detail: str
    """For a person."""
    job: str | None = None
    """The name that its job has, or would have."""
    status: str | None = None
    """The job's, as OSCAR tells it: Pending, Running, Succeeded, Failed, Suspended."""
    number: int | None = None
    """Of the event in the store: `dead-letters` and `parked` know it by that."""


class Asked(NamedTuple):
    """What became of an event at one service rests on what its cluster tells."""

    question: Question
    line: Line | None
    """The last thing that the journal has of it there."""
    sent_in: str | None
    """The id of the event that it was sent in with others."""


def fates(
    settings: Settings, key: str | None, event: Candidate, traces: Traces, hands: Hands
) -> Iterator[Told | Asked]:
    """Tell what became of `event`, of the source `key`, as far as it is known without asking a cluster."""
    if event.unread:
        yield Told(
            service="", fate=Fate.UNREAD, detail="its source was told of it, and it has still to be looked up"
        )
    here = {one.service: one for one in event.hands}
    rows = {row.service: row for row in traces.kept if row.source == event.source}
    last = _last(event.lines)
    if NO_LANE in here and len(here) > 1:
        del here[NO_LANE]
    services = list(dict.fromkeys([*here, *rows, *last]))
    on_its_way = NO_LANE in here or (NO_LANE in rows and rows[NO_LANE].reason == PARKED)
    if not (event.lines or event.unread or on_its_way) and key is not None:
        services += [name for name in settings.reachable(key) if name not in services]
    for name in services:
        if name in here:
            yield _of_hand(here[name], hands.shut.get(name))
        elif name in rows:
            yield _of_row(settings, rows[name], traces, hands.shut.get(name))
        elif name == NO_LANE:
            whole = last[NO_LANE]
            if whole.what in _WITHOUT_JOB and not (whole.what == "released" and (here or rows)):
                yield _of_line(NO_LANE, whole)
        else:
            line = last.get(name)
            if line is not None and (line.what in _WITHOUT_JOB or name not in settings.services):
                yield _of_line(name, line)
            else:
                yield _of_job(settings, event, traces, name, line)


def _last(lines: Sequence[Line]) -> dict[str, Line]:
    """Return the last line of each service that tells how it ended there; any, where none does.

    One without a service is about all of them: it counts while there is none after it.
    """
    last: dict[str, Line] = {}
    for line in lines:
        before = last.get(line.service)
        if line.what not in _WITHOUT_END or before is None or before.what in _WITHOUT_END:
            last[line.service] = line
    if any(line.what not in _WITHOUT_END for service, line in last.items() if service != NO_LANE):
        whole = last.get(NO_LANE)
        if whole is not None and whole.what not in ("dead", "discarded") and whole is not lines[-1]:
            del last[NO_LANE]
    return last


_WITHOUT_END = frozenset(("failed", "waits"))
_WITHOUT_JOB = frozenset(("filtered", "dead", "discarded", "released"))
"""Ends that leave no job to ask for."""


def _of_hand(here: InHand, shut: str | None) -> Told:
    detail = f"{here.doing}{_tries(here.attempts)}{_why_shut(shut)}"
    return Told(service=here.service, fate=Fate.IN_HAND, detail=detail)


def _of_row(settings: Settings, row: Kept, traces: Traces, shut: str | None) -> Told:
    since, tries = f"since {date(row.kept_at)}", _tries(row.attempts)
    if row.number in traces.windows:
        fate, detail = Fate.WINDOW, _window(traces.windows[row.number])
    elif row.reason == "dead":
        fate = Fate.DEAD
        detail = f"number {row.number}, {since}{tries}: {_caused(row.cause, row.detail)}"
    elif row.service == NO_LANE:
        fate, detail = Fate.PARKED, f"{since}, to go round its routes again"
    elif row.service in settings.services:
        fate, detail = Fate.PARKED, f"{since}{tries}, until its service takes it{_why_shut(shut)}"
    else:
        gone = "its service is not in the configuration (`oscar-bridge parked move`, or `bury`)"
        fate, detail = Fate.PARKED, f"{since}: {gone}"
    if row.event_id in traces.merged.values():
        detail += f"; sent with others as {row.event_id}"
    return Told(service=row.service, fate=fate, detail=detail, number=row.number)


def _tries(attempts: int) -> str:
    return f", after {_count(attempts, 'attempt')}" if attempts else ""


def _why_shut(shut: str | None) -> str:
    return "" if shut is None else f"; the service takes nothing now: {shut}"


def _window(window: Waited) -> str:
    others = _count(window.members - 1, "other")
    of_key = f" of key {window.key}" if window.key else ""
    if not window.due:
        return f"in a window{of_key}, with {others}, which is about to be sent ({window.reason})"
    until = f"until {date(window.due)} as it is now ({window.reason})"
    return f"in a window{of_key}, with {others}, {until}"


def _of_line(service: str, line: Line) -> Told:
    cause = _caused(line.cause or line.what, line.detail)
    fate, detail = {
        "filtered": (Fate.FILTERED, cause),
        "dead": (Fate.DEAD, f"{cause}; it is not kept any more"),
        "discarded": (Fate.DISCARDED, "its dead letter was deleted by a person"),
        "released": (Fate.RETURNED, "its source gives it again"),
    }.get(line.what, (Fate.ACCEPTED, "its service is not in the configuration any more"))
    return Told(service=service, fate=fate, detail=detail, job=line.job or None)


def _of_job(
    settings: Settings, event: Candidate, traces: Traces, name: str, line: Line | None
) -> Told | Asked:
    service = settings.services[name]
    if service.mode == "run":
        accepted = line is not None and line.what in ("accepted", "duplicate")
        detail = "`mode: run`: a call leaves no trace on the cluster"
        return Told(service=name, fate=Fate.ACCEPTED if accepted else Fate.UNKNOWN, detail=detail)
    sent = [each.into for each in event.lines if (each.what, each.service) == ("sent", name)]
    sent_in = traces.merged.get((event.source, name), sent[-1] if sent else None)
    everywhere = traces.renewed.get((event.source, NO_LANE), sent_in or event.event_id)
    newest = traces.renewed.get((event.source, name), everywhere)
    job = None if line is None else line.job
    job = job or invocation_name(event.source, newest, service.identity(name))
    return Asked(Question(name, job), line, sent_in)


def told(asked: Asked, answer: JobAnswer, *, was_removed: bool) -> Told:
    """Tell what became of an event, by what its cluster says of its job."""
    (service, job, _), line, sent_in = asked
    what = "" if line is None else line.what
    of_old = what == "duplicate"
    accepted = what in ("accepted", "duplicate", "ended")
    detail = answer.detail
    if answer.presence is Presence.THERE:
        fate = _FATES.get(answer.status or "", Fate.ACCEPTED)
        if fate is Fate.ACCEPTED and answer.status is not None:
            detail = f"its job waits on the cluster ({answer.status})"
    elif was_removed:
        fate, detail = Fate.SUCCEEDED, "its job was removed then (`remove_finished`)"
    elif line is not None and line.what == "ended":
        fate = _ENDS.get(line.cause, Fate.ACCEPTED)
        detail = _UNSEEN.get(line.cause, f"its job ended by {date(line.t)}")
    elif answer.presence is Presence.ABSENT:
        fate = Fate.ACCEPTED if accepted else Fate.RETURNED if what == "failed" else Fate.NO_JOB
        if accepted:
            detail = f"its job is not on the cluster any more: {detail}"
        elif what == "failed":
            detail = "its last attempt failed, and it is not here: its source gives it again"
    else:
        fate = Fate.ACCEPTED if accepted else Fate.UNKNOWN
        if accepted:
            detail = f"what its job does is not known: {detail}"
    if of_old:
        detail = f"duplicate: OSCAR had its job before, and made no second one; {detail}"
    if sent_in is not None:
        detail = f"sent with others as {sent_in}; {detail}"
    return Told(service=service, fate=fate, detail=detail, job=job, status=answer.status)


_FATES = {"Running": Fate.RUNNING, "Succeeded": Fate.SUCCEEDED, "Failed": Fate.FAILED}
_ENDS = {
    JobOutcome.SUCCEEDED.value: Fate.SUCCEEDED,
    JobOutcome.FAILED.value: Fate.FAILED,
    JobOutcome.GONE.value: Fate.GONE,
}
_UNSEEN = {
    JobOutcome.GONE.value: "its job was deleted before anybody saw it end",
    JobOutcome.UNJUDGED.value: "its job ended, and whether it left its output could not be told",
    JobOutcome.UNLISTED.value: "no listing has shown its job, and what became of it could not be told",
}


def _caused(cause: str, detail: str | None) -> str:
    return f"{cause}: {detail}" if detail else cause


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
