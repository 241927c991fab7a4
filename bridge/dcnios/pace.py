"""`components`: how often a processor of NiFi ran, and on which nodes, as a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from bridge.dcnios.elements import Element
from bridge.dcnios.remarks import Origin, What

_UNITS = (("s", 1), ("m", 60), ("h", 3600))


@dataclass(frozen=True, slots=True)
class Processor:
    """One of NiFi's processors, as DCNiOS's templates have it."""

    batch: int | None
    """What it takes at each run; None where how often it runs limits nothing."""
    on_all: bool = True
    """Whether it runs on every node of NiFi unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an element went in all."""

    rate: Fraction | None
    """Events in a second; None: no limit."""
    nodes: int
    """Of NiFi, on which it ran, each with one task."""
    origin: Origin
    """What says so."""
    told: str
    """The same for a person, such as `1 every 2 s`."""


def pace_of(element: Element, processors: Mapping[str, Processor], nodes: int) -> Pace:
    """Read an element's components; NiFi has so many `nodes`."""
    found = Pace(None, nodes, element.origin(), "")
    for component in element.items("components"):
        name = component.required("name")
        processor = processors.get(name)
        if processor is None:
            known = ", ".join(f"`{each}`" for each in processors)
            component.say(
                What.LEFT_OUT, None, f"DCNiOS does nothing where there is no such processor; there is {known}"
            )
            continue
        seconds = component.number("seconds")
        count = _nodes(component, processor, nodes)
        if processor.batch is None:
            component.say(What.LEFT_OUT, None, f"how often and where `{name}` ran limits nothing")
        elif not seconds:
            component.say(What.LEFT_OUT, None, f"`{name}` ran without a pause: no rate comes of it")
            found = replace(found, nodes=count)
        else:
            rate = processor.batch * count / seconds
            told = f"{processor.batch} every {float(seconds):g} s"
            told += f" on each of {count} nodes" if count > 1 else ""
            if found.rate is None or rate < found.rate:
                found = Pace(rate, count, component.origin(), told)
            if processor.on_all and count == 1 and component.content("node") != "PRIMARY":
                told += "; were there more nodes of NiFi, say how many with --nodes"
            component.say(What.CHANGED, None, f"`{name}` ran {told}: {rate_text(rate)}")
        component.finish()
    return found


def _nodes(component: Element, processor: Processor, nodes: int) -> int:
    node = component.content("node")
    if node not in (None, "PRIMARY", "ALL"):
        component.leave_out("node", "DCNiOS ignores what is neither ALL nor PRIMARY")
    on_all = node == "ALL" or (node != "PRIMARY" and processor.on_all)
    return nodes if on_all else 1


def rate_text(rate: Fraction) -> str:
    """Write a rate as the configuration has it, in the unit in which it is a whole number, never above it."""
    for unit, seconds in _UNITS:
        if (rate * seconds).denominator == 1:
            return f"{rate * seconds}/{unit}"
    unit, seconds = next((one for one in _UNITS if rate * one[1] >= 1), _UNITS[-1])
    digits = rate * seconds * 10**6
    return f"{float(digits.numerator // digits.denominator / 10**6):f}".rstrip("0").rstrip(".") + f"/{unit}"
