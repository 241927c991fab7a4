"""Where elements stand: DCNiOS has had four layouts of its file, and people mix them.

| layout | in use | shape |
| --- | --- | --- |
| A | 2023-04 … 2024-06 | `nifi: {dcache, oscar, generic, connection}` |
| B | 2024-04 … 2024-06 | the same with `Kafka`, `SQS`, `S3` |
| C | 2024-06 … 2025-06 | `nifi: {dCache, OSCAR, Kafka, SQS, GetS3, generic, connection}` |
| D | since 2025-06 | the same below `Source` (with `GetSQS`, `RUCIO`) and `Destination` (with `PutS3`) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.dcnios.elements import NOTHING, Element
from bridge.dcnios.remarks import Origin, Report, What
from bridge.settings.names import did_you_mean
from bridge.settings.tree import Loc, Value, dotted

SOURCE, DESTINATION = "Source", "Destination"
_KINDS = {
    SOURCE: {
        "dCache": "dCache",
        "dcache": "dCache",
        "Kafka": "Kafka",
        "GetSQS": "GetSQS",
        "SQS": "GetSQS",
        "GetS3": "GetS3",
        "S3": "GetS3",
        "RUCIO": "RUCIO",
    },
    DESTINATION: {"OSCAR": "OSCAR", "oscar": "OSCAR", "PutS3": "PutS3"},
}
"""Room → what a kind is called in one layout or another → what the newest calls it."""
_FLAT = _KINDS[SOURCE] | _KINDS[DESTINATION] | {"generic": "generic"}
_OLD = {"dcache", "oscar"}
_NEW = {"dCache", "OSCAR", "GetS3", "GetSQS", "PutS3", "RUCIO"}
_MIXTURE = "a mixture of layouts"


@dataclass(frozen=True, slots=True)
class Elements:
    """All elements of a file, each with its name, and how they are connected."""

    sources: Sequence[Element]
    destinations: Sequence[Element]
    generics: Sequence[Element]
    connections: Sequence[Element]
    connection: Origin
    """Where the connections stand, or should."""


class _Finder:
    def __init__(self, root: Value, report: Report) -> None:
        self._report = report
        self._found: dict[str, list[Element]] = {}
        self._rooms: set[str] = set()
        self._flat: set[str] = set()
        self._nifi = root.mapping()["nifi"]

    def find(self) -> Elements:
        nifi = Element(self._nifi, ("nifi",), "nifi", self._report)
        for key in ("endpoint", "user", "password"):
            nifi.leave_out(key, "there is no NiFi any more")
        for key, value in self._nifi.mapping().items():
            if key in _KINDS:
                self._rooms.add(key)
                self._room(key, value)
            elif key in _FLAT:
                self._flat.add(key)
                self._kind(_FLAT[key], value, ("nifi", key))
            elif key not in ("endpoint", "user", "password", "connection"):
                self._unknown(key, value, ("nifi", key), [*_KINDS, *_FLAT, "connection"])
        self._say_what_it_is(self._layout())
        connections = list(nifi.items("connection"))
        self._name()
        return Elements(
            [one for kind in dict.fromkeys(_KINDS[SOURCE].values()) for one in self._found.get(kind, ())],
            [one for kind in ("OSCAR", "PutS3") for one in self._found.get(kind, ())],
            self._found.get("generic", []),
            connections,
            nifi.origin("connection"),
        )

    def _room(self, room: str, value: Value) -> None:
        loc = ("nifi", room)
        if value.content in (None, {}):
            self._report.say(What.LEFT_OUT, _origin(value, loc), NOTHING)
        elif not isinstance(value.content, dict):
            self._report.wrong(_origin(value, loc), "expected kinds of elements, such as `Kafka:`")
        for key, inner in value.mapping().items():
            if key in _KINDS[room]:
                self._kind(_KINDS[room][key], inner, (*loc, key))
            elif key in _FLAT and key != "generic":
                other = DESTINATION if room == SOURCE else SOURCE
                self._report.wrong(_origin(inner, (*loc, key)), f"belongs under `{other}`")
            else:
                self._unknown(key, inner, (*loc, key), list(_KINDS[room]))

    def _kind(self, kind: str, value: Value, loc: Loc) -> None:
        if value.content in (None, []):
            self._report.say(What.LEFT_OUT, _origin(value, loc), NOTHING)
            return
        if not isinstance(value.content, list):
            message = "expected a list of elements, each with `- name: …`"
            self._report.wrong(_origin(value, loc), message)
            return
        key, room = loc[-1], loc[1] if len(loc) > 2 else None
        for index, item in enumerate(value.content):
            element = Element(item, (*loc, index), kind, self._report)
            if not isinstance(item.content, dict):
                element.wrong(None, "expected a mapping of `key: value`")
                continue
            self._found.setdefault(kind, []).append(element)
            if room is not None and key != kind:
                element.say(What.CHANGED, None, f"read as `{kind}`; DCNiOS ignores a `{key}` below `{room}`")
            if room is None and kind in ("GetSQS", "GetS3") and key in ("S3", "SQS"):
                why = "don't run DCNiOS's `delete` on this file: it deletes the queue, which the bridge reads"
                element.say(What.TO_DO, None, why)

    def _unknown(self, key: str, value: Value, loc: Loc, known: Sequence[str]) -> None:
        if isinstance(value.content, list):
            message = f"DCNiOS has no such kind of element{did_you_mean(key, dict.fromkeys(known))}"
            self._report.wrong(_origin(value, loc), message)
        else:
            self._report.say(What.LEFT_OUT, _origin(value, loc), "DCNiOS does not read it")

    def _layout(self) -> str:
        kinds = self._flat - {"generic"}
        if self._rooms:
            return _MIXTURE if kinds else "layout D, since 2025-06"
        if kinds & _OLD and kinds & _NEW:
            return _MIXTURE
        if kinds <= _OLD:
            return "layout A, 2023-04 to 2024-06"
        if kinds & _OLD or "S3" in kinds:
            return "layout B, 2024-04 to 2024-06"
        return "layout C, 2024-06 to 2025-06"

    def _say_what_it_is(self, layout: str) -> None:
        told = f"read as {layout}"
        if layout == _MIXTURE and self._rooms:
            told += ": elements directly under `nifi` are read here too; the newest DCNiOS ignores them"
        elif not self._rooms:
            told += ": the newest DCNiOS does not read it any more"
        self._report.say(What.KEPT, _origin(self._nifi, ("nifi",)), told)

    def _name(self) -> None:
        """Name each element. Two of one name are a mistake: DCNiOS made one of them."""
        seen: dict[str, Element] = {}
        elements = [element for found in self._found.values() for element in found]
        for element in sorted(elements, key=lambda one: one.value.place[:2]):
            element.name = element.required("name")
            first = seen.setdefault(element.name, element)
            if first is not element and element.name:
                line = first.origin("name").place.line
                element.wrong(
                    "name",
                    f"two elements have this name, the first in line {line}: DCNiOS makes one of them, with "
                    "settings of both; give each its own",
                )


def find(root: Value, report: Report) -> Elements:
    """Return the elements of the file, told about where they stand. Mistakes go into the report."""
    for key, value in root.mapping().items():
        if key != "nifi":
            report.say(What.LEFT_OUT, _origin(value, (key,)), "DCNiOS reads nothing but `nifi`")
    return _Finder(root, report).find()


def _origin(value: Value, loc: Loc) -> Origin:
    return Origin(value.place, dotted(loc))
