"""A file of DCNiOS becomes a configuration of the bridge, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.core.errors import ConfigurationError, Mistake
from bridge.dcnios import alterations, dcache, kafka, oscar, rucio, sqs
from bridge.dcnios.alterations import Alteration
from bridge.dcnios.connections import Edge, edges
from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.layouts import find
from bridge.dcnios.names import key_of
from bridge.dcnios.oscar import Service
from bridge.dcnios.pace import Processor, pace_of
from bridge.dcnios.remarks import Origin, Remark, Report, What
from bridge.dcnios.trial import mistakes_into
from bridge.dcnios.writing import written
from bridge.settings.document import read
from bridge.settings.tree import Value, secrets_of

_Reader = Callable[[Element, Entry, Draft], None]
_SOURCES: Mapping[str, tuple[str, _Reader, Mapping[str, Processor]]] = {
    "dCache": ("dcache", dcache.read, dcache.PROCESSORS),
    "Kafka": ("kafka", kafka.read, kafka.PROCESSORS),
    "GetSQS": ("sqs", sqs.read, sqs.PROCESSORS),
    "GetS3": ("sqs", sqs.read, sqs.PROCESSORS),
    "RUCIO": ("rucio", rucio.read, rucio.PROCESSORS),
}
"""What the newest DCNiOS calls a source → its `type`, who reads it, and its processors."""
_KEEP = "job names are made of it: keep it when this source's key is renamed"


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file of DCNiOS becomes."""

    configuration: str
    """The text of `bridge.yaml`."""
    secrets: Mapping[str, str]
    """Name of a file in `secrets` beside it → what is in it."""
    remarks: Sequence[Remark]
    """What became of each key, in the order of the file; no secret is in them."""


def import_file(path: Path, *, nodes: int) -> Imported:
    """Make a configuration of the file of DCNiOS at `path`, whose NiFi has so many `nodes`.

    Raises ConfigurationError with every mistake that makes it impossible, in the order of the file.
    """
    found: list[Mistake] = []
    root = read(path, found, expected="`nifi`")
    _refuse_another(root, path)
    if found:
        raise ConfigurationError(found)
    report = Report(secrets_of(root))
    draft = Draft()
    _Importer(root, report, draft, nodes).run()
    report.raise_mistakes()
    mistakes_into(report, draft, Origin(root.mapping()["nifi"].place, "nifi"))
    report.raise_mistakes()
    return Imported(written(draft, path.name), draft.secrets, report.remarks())


def _refuse_another(root: Value, path: Path) -> None:
    if not root.mapping("nifi"):
        ours = {"clusters", "services", "sources", "routes"} & root.mapping().keys()
        told = (
            "this is a configuration of the bridge already"
            if ours
            else "expected `nifi:`, the top of DCNiOS's file"
        )
        raise ConfigurationError([Mistake(f"{path}:1:1", "", told)])


@dataclass(slots=True)
class _Source:
    """What the routes from a source need to know of it."""

    key: str
    origin: Origin
    when: str = ""
    altered: dict[str, Alteration | None] = field(default_factory=dict)
    """By keys of a route."""


class _Importer:
    """One file on its way to a draft."""

    def __init__(self, root: Value, report: Report, draft: Draft, nodes: int) -> None:
        self._report = report
        self._draft = draft
        self._nodes = nodes
        self._elements = find(root, report)

    def run(self) -> None:
        """Fill the draft, or the report with mistakes."""
        found = edges(self._elements, self._report)
        destinations = [one for one in self._elements.destinations if one.kind == "OSCAR"]
        services = oscar.read(
            _connected(destinations, {edge.destination for edge in found}, "leads to it"), self._nodes
        )
        sources = {
            element.name: self._source(
                element, [services[edge.destination] for edge in found if edge.source == element.name]
            )
            for element in _connected(
                self._elements.sources, {edge.source for edge in found}, "leads from it to OSCAR"
            )
        }
        oscar.draw({id(service): service for service in services.values()}.values(), self._draft)
        self._routes(found, services, sources)

    def _source(self, element: Element, services: Sequence[Service]) -> _Source:
        kind, read_keys, processors = _SOURCES[element.kind]
        key = key_of(element.name, [entry.key for entry in self._draft.sources], kind)
        renamed = key != element.name
        element.say(
            What.CHANGED if renamed else What.KEPT,
            "name",
            f"`sources.{key}`"
            + (": a key of the bridge has letters, digits, `-` and `_`" if renamed else ""),
        )
        entry = Entry(key, element.origin())
        entry.put("type", kind)
        read_keys(element, entry, self._draft)
        entry.put("identity", key, element.origin("name"), _KEEP)
        self._draft.sources.append(entry)
        source = _Source(key, element.origin("service_filter"))
        if element.kind == "RUCIO":
            source.when = rucio.condition(element)
        pace = pace_of(element, processors, self._nodes)
        altered = alterations.read(element, kafka.joined(element) if element.kind == "Kafka" else None)
        source.altered = {"decode": altered.decode, "merge": altered.merge}
        for service in services:
            service.sources[element.name] = pace
            if altered.base64 is not None:
                service.base64.add(element.name)
        element.finish()
        return source

    def _routes(
        self, found: Sequence[Edge], services: Mapping[str, Service], sources: Mapping[str, _Source]
    ) -> None:
        seen: set[tuple[str, str]] = set()
        for edge in found:
            source, service = sources[edge.source], services[edge.destination]
            if (edge.source, service.key) in seen:
                why = f"`{service.key}` has each event of `{edge.source}` by another route: one job, not two"
                self._report.say(What.CHANGED, edge.origin, why)
                continue
            seen.add((edge.source, service.key))
            entry = Entry("", edge.origin)
            entry.put("from", source.key)
            if source.when:
                entry.put("when", source.when, source.origin, "service_filter of DCNiOS")
            for key, alteration in source.altered.items():
                if alteration is not None:
                    entry.put(key, alteration.value, alteration.origin, alteration.comment)
            entry.put("to", service.key)
            self._draft.routes.append(entry)


def _connected(elements: Sequence[Element], named: Collection[str], what: str) -> Iterator[Element]:
    """Give the elements that are `named` in a route, and tell that the others are left out."""
    for element in elements:
        if element.name in named:
            yield element
        elif element.name:
            why = f"no connection {what}; add one and import it again, if it is meant"
            element.say(What.LEFT_OUT, None, why)
