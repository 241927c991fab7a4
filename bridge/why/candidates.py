"""Events that go by the name asked for, with what was found of them first."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.core.ports import Spooled
from bridge.settings import Settings
from bridge.sources.registry import kind_of
from bridge.store.find import Named, Names, Traces
from bridge.store.history import Found, Line
from bridge.why.hands import Hands, InHand
from bridge.why.name import Name


@dataclass(slots=True)
class Candidate:
    """An event that goes by the name asked for, with what was found of it first."""

    source: str
    """The identity of its source."""
    event_id: str
    last: float = 0.0
    """The newest that is known of it, in seconds since 1970 UTC."""
    subject: str | None = None
    key: str | None = None
    lines: list[Line] = field(default_factory=list)
    hands: list[InHand] = field(default_factory=list)
    unread: bool = False
    """Whether its source was told of it, and there is no event of it yet."""


class Candidates:
    """All of them, by their sources and ids."""

    def __init__(self, settings: Settings, name: Name, source: str | None) -> None:
        self._settings = settings
        self._name = name
        self.keys = {
            one.identity or key: key for key, one in settings.sources.items() if source in (None, key)
        }
        """Of the sources meant, by their identities."""
        self._any = source is None
        self._events: dict[tuple[str, str], Candidate] = {}

    def take_in(self, found: Found, names: Names, exact: Traces, hands: Hands) -> None:
        """Take in what the journal, the store by names and by the id, and a running bridge have."""
        for line in found.lines:
            event = self._event(line.source, line.id, line.t, line.subject, line.key)
            if event is not None:
                event.lines.append(line)
        for named in names.found:
            self._take_named(named)
        for kept in exact.kept:
            self._event(kept.source, self._name.text, kept.kept_at)
        for identity, _ in (*exact.renewed, *exact.merged):
            self._event(identity, self._name.text, 0.0)
        for here in hands.events:
            event = self._event(here.source, here.event_id, here.since, here.subject, here.key)
            if event is not None:
                event.hands.append(here)

    def _take_named(self, named: Named) -> None:
        subject = named.subject
        if named.unread is not None:
            key = self.keys.get(named.source)
            if key is None:
                return
            config = self._settings.sources[key]
            subject = kind_of(config).subject_of(config, Spooled(key=named.event_id, data=named.unread))
            if not any(each is not None and self._name.fits(each) for each in (named.event_id, subject)):
                return
        event = self._event(named.source, named.event_id, named.kept_at, subject, named.key)
        if event is not None:
            event.unread = named.unread is not None

    def _event(
        self, source: str, event_id: str, at: float, subject: str | None = None, key: str | None = None
    ) -> Candidate | None:
        """Return the event of that id; None where it is of none of the sources meant."""
        if source not in self.keys and not self._any:
            return None
        event = self._events.setdefault((source, event_id), Candidate(source, event_id))
        event.last = max(event.last, at)
        event.subject, event.key = event.subject or subject, event.key or key
        return event

    def first_ones(self) -> list[Candidate]:
        """Return the events, but for those replayed as new: they are of the event that was first."""
        first_ones = []
        for (source, event_id), event in self._events.items():
            first_id, plus, generation = event_id.rpartition("+")
            first = self._events.get((source, first_id)) if plus and generation.isdecimal() else None
            if first is None:
                first_ones.append(event)
                continue
            first.lines += event.lines
            first.hands += event.hands
            first.last = max(first.last, event.last)
        return first_ones
