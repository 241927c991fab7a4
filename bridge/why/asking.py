"""Puts together all that is known of the events of a name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any

from bridge.core.identity import invocation_name
from bridge.settings import Settings
from bridge.sources import Upstream, Whereabouts
from bridge.sources.registry import kind_of
from bridge.store import find, history
from bridge.store.find import Traces, Wanted
from bridge.store.history import Found, Line, Needle
from bridge.why.candidates import Candidate, Candidates
from bridge.why.fates import NOTHING_KNOWN, Asked, Told, fates, told
from bridge.why.hands import Hands
from bridge.why.jobs import JobAnswer, Presence, Question, ask
from bridge.why.name import Name

MOST = 10
"""Events that are told of at once."""
MOST_LINES = 100
"""Of one event's story: the first ones and the last ones."""
_STORE_SECONDS = 3.0
_JOURNAL_SECONDS = 5.0
"""For one search of it: the whole of it takes about half a second, if what is searched for is rare."""
_GLOB_SECONDS = 2.0
"""Likewise for what may be in each line."""
_MOST_FOUND = 1000
"""Lines that are looked at."""
_UPSTREAM_SECONDS = 8.0
"""For what one source's upstream tells."""

_DIGEST = 38
"""Digits at the end of a job's name."""

AskHands = Callable[[Name], Awaitable[Hands]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One event, and what became of it."""

    source: str
    """Key of its source; its identity where the configuration has none such any more."""
    id: str
    """Empty for a job whose event is not known."""
    subject: str | None = None
    key: str | None = None
    story: Sequence[Mapping[str, Any]] = ()
    """What the journal has of it, the oldest first."""
    fates: Sequence[Told]


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """What the upstream of one source tells of an event that the bridge does not know."""

    source: str
    """Key of the source."""
    whereabouts: Whereabouts
    detail: str
    """For a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that is known of the events that go by a name."""

    query: str
    begins: float | None
    """When the journal begins, in seconds since 1970 UTC; None without one."""
    events: Sequence[Story] = ()
    """The newest first."""
    more: bool = False
    """Whether there are more than are told of."""
    upstream: Sequence[Still] = ()
    """Where no event is known."""
    notes: Sequence[str] = ()
    """What could not be looked at, for a person."""

    def document(self) -> dict[str, Any]:
        """Return it as it is written; the stories in it are shared, for to copy them takes long."""
        events = [{**_members(each), "fates": list(map(_members, each.fates))} for each in self.events]
        return {**_members(self), "events": events, "upstream": list(map(_members, self.upstream))}


async def why(
    settings: Settings, query: str, source: str | None = None, ask_hands: AskHands | None = None
) -> Answer:
    """Tell what became of the events that go by `query`, of the source `source` or of any.

    Works beside a daemon and without one; `ask_hands` tells what a running one has in hand. Raises StoreError
    when there is a store, or a journal, that can't be read.
    """
    return await _Asking(settings, query, source, ask_hands).answer()


class _Asking:
    def __init__(
        self, settings: Settings, query: str, source: str | None, ask_hands: AskHands | None
    ) -> None:
        self._settings = settings
        self._name = Name(query)
        self._ask_hands = ask_hands
        self._candidates = Candidates(settings, self._name, source)
        self._keys = self._candidates.keys
        self._notes: list[str] = []

    async def answer(self) -> Answer:
        settings, name = self._settings, self._name
        found, names, exact, hands = await asyncio.gather(
            asyncio.to_thread(self._read_journal),
            asyncio.to_thread(find.named, settings.state_dir, self._wanted(), _STORE_SECONDS),
            asyncio.to_thread(find.find, settings.state_dir, list(self._keys), name.text),
            self._hands(),
        )
        self._candidates.take_in(found, names, exact, hands)
        newest = sorted(self._candidates.first_ones(), key=lambda each: each.last, reverse=True)
        stories = await self._stories(newest[:MOST], hands)
        if not stories:
            stories = await self._jobs_alone(thorough=found.begins is None)
        if not names.complete and not newest:
            self._notes.append("all of the store, in the time there was: give the whole id")
        if found.more and not newest:
            self._notes.append("all of the journal, in the time there was: give more of the name, or an id")
        if found.lost:
            self._notes.append(f"{found.lost} lines of the journal, which were lost")
        if found.killed and not newest:
            self._notes.append(
                f"the tenth of a second before each of {len(found.killed)} kills of the bridge: "
                "the journal may lack it"
            )
        known = any(one.fate not in NOTHING_KNOWN for story in stories for one in story.fates)
        return Answer(
            query=name.text,
            begins=found.begins,
            events=stories,
            more=len(newest) > MOST or found.more or not names.complete,
            upstream=() if known else await self._upstream(),
            notes=list(dict.fromkeys(self._notes)),
        )

    # What there is

    def _read_journal(self) -> Found:
        state_dir = self._settings.state_dir
        seconds = _GLOB_SECONDS if self._name.is_glob else _JOURNAL_SECONDS
        parts = [
            history.read(state_dir, needle, limit=_MOST_FOUND, seconds=seconds)
            for needle in self._name.needles()
        ]
        lines = dict.fromkeys(line for part in parts for line in part.lines)
        return replace(
            parts[0],
            lines=[line for line in lines if any(map(self._name.fits, _names(line)))],
            more=any(part.more for part in parts),
        )

    def _wanted(self) -> Wanted:
        return Wanted(
            part=self._name.part, fits=self._name.fits, job=self._job_of if self._name.is_job else None
        )

    def _job_of(self, source: str, event_id: str, service: str) -> str | None:
        config = self._settings.services.get(service)
        return None if config is None else invocation_name(source, event_id, config.identity(service))

    async def _hands(self) -> Hands:
        return Hands() if self._ask_hands is None else await self._ask_hands(self._name)

    # What became of it

    async def _stories(self, events: Sequence[Candidate], hands: Hands) -> list[Story]:
        traces = await asyncio.to_thread(self._complete, events)
        plans = [
            list(fates(self._settings, self._keys.get(event.source), event, of_event, hands))
            for event, of_event in zip(events, traces, strict=True)
        ]
        asked = [each.question for plan in plans for each in plan if isinstance(each, Asked)]
        answers, gone = await self._ask(asked)
        shortened = await asyncio.to_thread(lambda: [_shortened(event.lines) for event in events])
        return [
            Story(
                source=self._keys.get(event.source, event.source),
                id=event.event_id,
                subject=event.subject,
                key=event.key,
                story=story,
                fates=[
                    each
                    if isinstance(each, Told)
                    else told(each, answers[each.question], was_removed=each.question in gone)
                    for each in plan
                ],
            )
            for event, plan, story in zip(events, plans, shortened, strict=True)
        ]

    def _complete(self, events: Iterable[Candidate]) -> list[Traces]:
        """Read what else the store and the journal have of each of `events`; in a thread."""
        state_dir, found = self._settings.state_dir, []
        until = monotonic() + _JOURNAL_SECONDS / 2
        read: dict[str, Sequence[Line]] = {}
        for event in events:
            traces = find.find(state_dir, [event.source], event.event_id)
            ids = {*traces.renewed.values(), *(line.into for line in event.lines if line.into)}
            if not any(map(self._name.fits, (event.event_id, event.subject or "", event.key or ""))):
                ids.add(event.event_id)
            for event_id in ids:
                if event_id not in read and monotonic() < until:
                    needle = Needle(event_id, "exact")
                    read[event_id] = history.read(state_dir, needle, seconds=_JOURNAL_SECONDS).lines
                if event_id not in read:
                    self._notes.append("all of the journal, in the time there was: give an id for the rest")
                lines = read.get(event_id, ())
                event.lines += [line for line in lines if (line.source, line.id) == (event.source, event_id)]
            event.lines = sorted(dict.fromkeys(event.lines), key=lambda line: line.t)
            found.append(traces)
        return found

    async def _ask(
        self, questions: Sequence[Question]
    ) -> tuple[Mapping[Question, JobAnswer], Collection[Question]]:
        """Ask clusters, and return which of the jobs that are not there were removed by the bridge."""
        answers = await ask(self._settings, questions)
        missing = [question for question, answer in answers.items() if answer.presence is not Presence.THERE]
        pairs = {(question.service, question.job): question for question in missing}
        gone = await asyncio.to_thread(find.removed, self._settings.state_dir, list(pairs))
        return answers, {pairs[each] for each in gone}

    async def _jobs_alone(self, *, thorough: bool) -> list[Story]:
        """Look for jobs of an event with that id, and for a job of that name, though no event is known."""
        of_event: dict[Question, str] = {}
        for identity, key in self._keys.items():
            for service in self._settings.reachable(key):
                config = self._settings.services[service]
                name = invocation_name(identity, self._name.text, config.identity(service))
                if config.mode != "job":
                    continue
                if not self._name.is_glob:
                    of_event[Question(service, name, thorough)] = key
                if self._name.is_job and name[:-_DIGEST] == self._name.text[:-_DIGEST]:
                    of_event[Question(service, self._name.text)] = ""
        answers, gone = await self._ask(list(of_event))
        stories = []
        for question, answer in answers.items():
            if answer.presence is Presence.THERE or question in gone:
                key = of_event[question]
                fate = told(Asked(question, None, None), answer, was_removed=question in gone)
                stories.append(Story(source=key, id=self._name.text if key else "", fates=[fate]))
            elif answer.presence is Presence.UNKNOWN:
                self._notes.append(f"service {question.service}: {answer.detail}")
        return stories

    async def _upstream(self) -> list[Still]:
        return await asyncio.gather(*(self._still(*each) for each in self._keys.items()))

    async def _still(self, identity: str, key: str) -> Still:
        entered = partial(find.entered, self._settings.state_dir, identity)
        config = self._settings.sources[key]
        try:
            async with asyncio.timeout(_UPSTREAM_SECONDS):
                found = await kind_of(config).look_for(config, self._name.text, self._name.fits, entered)
        except TimeoutError:
            found = Upstream(Whereabouts.UNKNOWN, f"no answer within {_UPSTREAM_SECONDS:g} s")
        return Still(source=key, whereabouts=found.whereabouts, detail=found.detail)


def _shortened(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines as a document has them, without the middle of a long story."""
    half = MOST_LINES // 2
    kept = lines if len(lines) <= MOST_LINES else [*lines[:half], *lines[-half:]]
    return [{name: value for name, value in _members(line).items() if value} for line in kept]


def _members(of: Answer | Story | Told | Still | Line) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


def _names(line: Line) -> Sequence[str]:
    return line.id, line.subject, line.key, line.job, line.into
