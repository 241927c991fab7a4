"""`connection`: which source goes to which destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bridge.dcnios.elements import Element
from bridge.dcnios.layouts import Elements
from bridge.dcnios.remarks import Origin, Report, What
from bridge.settings.names import did_you_mean

_TO = "`to`: "


class Edge(NamedTuple):
    """From a source that the bridge has to a service of OSCAR, by their names."""

    source: str
    destination: str
    origin: Origin


def edges(elements: Elements, report: Report) -> Sequence[Edge]:
    """Return the connections that become routes, each once, and tell what becomes of every one."""
    found: dict[tuple[str, str], Edge] = {}
    for connection in elements.connections:
        source, destination = connection.required("from"), connection.required("to")
        connection.finish()
        if not source or not destination:
            continue
        why_not = _not_from(source, elements) or _not_to(destination, elements)
        first = found.get((source, destination))
        if why_not:
            connection.say(What.LEFT_OUT, None, why_not)
        elif first is not None:
            connection.say(What.LEFT_OUT, None, f"the same as in line {first.origin.place.line}")
        else:
            found[source, destination] = Edge(source, destination, connection.origin())
            connection.say(What.KEPT, None, f"a route from `{source}` to `{destination}`")
    for element in elements.generics:
        _leave_generic(element)
    for element in elements.destinations:
        if element.kind == "PutS3":
            element.say(What.LEFT_OUT, None, "the bridge writes no objects to S3 until it has `type: s3`")
    if not found:
        report.wrong(
            elements.connection,
            "no connection leads from a source to a service of OSCAR, so there is nothing to run",
        )
    return list(found.values())


def _not_from(name: str, elements: Elements) -> str:
    if name in _names(elements.sources):
        return ""
    if name in _names(elements.generics):
        return f"DCNiOS makes no connection from a `generic` (`{name}`)"
    if name in _names(elements.destinations):
        return f"`{name}` is a destination, and nothing comes from one"
    near = did_you_mean(name, _names(elements.sources))
    return f"DCNiOS passes over a source that is not there, `{name}`{near}"


def _not_to(name: str, elements: Elements) -> str:
    kinds = {element.name: element.kind for element in elements.destinations}
    if kinds.get(name) == "OSCAR":
        return ""
    if name in kinds:
        return (
            f"{_TO}`{name}` writes objects to S3, which the bridge can't until it has a service of `type: s3`"
        )
    if name in _names(elements.generics):
        return f"{_TO}`{name}` is a `generic`, which the bridge can't have"
    if name in _names(elements.sources):
        return f"{_TO}`{name}` is a source, and nothing goes to one"
    return f"{_TO}there is no destination `{name}`{did_you_mean(name, kinds)}"


def _names(elements: Sequence[Element]) -> list[str]:
    return [element.name for element in elements]


def _leave_generic(element: Element) -> None:
    file, variables = element.value.text("file"), element.value.mapping("variables")
    told = [f"`{file}`"] if file else []
    told += [f"its variables: {', '.join(f'`{name}`' for name in variables)}"] if variables else []
    element.say(
        What.LEFT_OUT,
        None,
        f"any process group of NiFi ({'; '.join(told) or 'no file'}) can't be carried over: what it does "
        "belongs into a service's script",
    )
