"""`alterations` of a source: what NiFi made of each message before OSCAR had it."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.dcnios.elements import Element
from bridge.dcnios.remarks import Origin, What
from bridge.settings.names import did_you_mean

_ACTIONS = ("Merge", "Encode", "Decode")
_ENCODINGS = ("base64", "base32", "hex")
_MOST_EVENT = "131,065"


@dataclass(frozen=True, slots=True)
class Alteration:
    """What a route, or the service behind it, has to do in NiFi's place."""

    value: dict[str, str | int | bool] | str
    origin: Origin
    comment: str


@dataclass(slots=True)
class Alterations:
    """All of one source's."""

    merge: Alteration | None = None
    decode: Alteration | None = None
    base64: Origin | None = None
    """What says that the message goes as base64, whatever it is."""


def read(element: Element, by_key: Alteration | None) -> Alterations:
    """Read a source's alterations, in their order; `by_key` is how its records are joined before them."""
    steps: list[tuple[str, str, Element]] = []
    for item in element.items("alterations"):
        action = item.required("action")
        if action and action not in _ACTIONS:
            item.wrong("action", f"DCNiOS has no such alteration{did_you_mean(action, _ACTIONS)}")
            continue
        encoding = (item.text("Encoding") or "base64") if action != "Merge" else ""
        if encoding and encoding not in _ENCODINGS:
            item.wrong("Encoding", f"NiFi has no such encoding{did_you_mean(encoding, _ENCODINGS)}")
        if any(action == each for each, _, _ in steps):
            item.say(What.LEFT_OUT, None, f"a second `{action}` of one source: DCNiOS makes one of the two")
            item.content("maxMessages"), item.content("windowSeconds")
            continue
        steps.append((action, encoding, item))
    found = Alterations(by_key)
    for action, encoding, item in _without_pairs(steps):
        if action == "Merge":
            _merge(item, found)
        elif action == "Decode":
            _decode(item, encoding, found)
        else:
            _encode(item, encoding, found)
    for _, _, item in steps:
        item.finish()
    return found


def _without_pairs(steps: list[tuple[str, str, Element]]) -> list[tuple[str, str, Element]]:
    """Leave out each `Encode` that the next step undoes."""
    left: list[tuple[str, str, Element]] = []
    for step in steps:
        if left and step[0] == "Decode" and left[-1][:2] == ("Encode", step[1]):
            left.pop()[2].say(What.LEFT_OUT, None, "the `Decode` behind it undoes it")
            step[2].say(What.LEFT_OUT, None, "it undoes the `Encode` before it")
        else:
            left.append(step)
    return left


def _merge(item: Element, found: Alterations) -> None:
    most, window = item.number("maxMessages"), item.number("windowSeconds")
    for key, number in (("maxMessages", most), ("windowSeconds", window)):
        if not item.has(key):
            item.wrong(key, "missing; expected a number")
        elif number is not None and (number <= 0 or (key == "maxMessages" and number.denominator > 1)):
            item.wrong(key, "expected a whole number above 0")
    if most is None or window is None:
        return
    if found.merge is not None:
        item.say(What.LEFT_OUT, None, "records are joined by their key already, and a route joins once")
        return
    told = f"up to {most} messages, or those of {float(window):g} s, joined by a newline"
    if found.base64 is not None:
        item.say(What.CHANGED, None, f"{told}: joined first, since lines of base64 can't have been read")
    else:
        item.say(What.CHANGED, None, f"{told}: `merge` of the route")
    item.say(
        What.LOST, None, f"a batch of more than {_MOST_EVENT} bytes never started a job; the bridge splits it"
    )
    value: dict[str, str | int | bool] = {"max_events": int(most), "window": f"{float(window):g}s"}
    found.merge = Alteration({**value, "as": "text"}, item.origin(), "Merge of DCNiOS")


def _decode(item: Element, encoding: str, found: Alterations) -> None:
    if encoding != "base64":
        item.say(What.LEFT_OUT, None, f"the bridge decodes no {encoding}: decode it in the service's script")
        return
    if found.merge is not None:
        item.say(What.CHANGED, None, "`decode` of the route: each message is decoded, then they are joined")
    else:
        item.say(What.CHANGED, None, "`decode` of the route")
    found.decode = Alteration("base64", item.origin(), "Decode of DCNiOS")


def _encode(item: Element, encoding: str, found: Alterations) -> None:
    if encoding != "base64":
        why = "OSCAR's supervisor takes the text for base64 and hands over garbage; it can't have worked"
        item.say(What.LEFT_OUT, None, f"{encoding}: {why}")
        return
    item.say(What.CHANGED, None, "`payload: base64` of the service: its script sees the message itself")
    found.base64 = item.origin()
