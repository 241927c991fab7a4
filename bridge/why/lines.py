"""What became of events, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.sources import Whereabouts
from bridge.store.clock import date
from bridge.why.fates import NOTHING_KNOWN


def knows(answer: Mapping[str, Any]) -> bool:
    """Tell whether `asking.Answer`, as a document, says what became of any event of the name."""
    fates = [one["fate"] for event in answer["events"] for one in event["fates"]]
    there = any(one["whereabouts"] == Whereabouts.THERE for one in answer["upstream"])
    return there or any(fate not in NOTHING_KNOWN for fate in fates)


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Tell a person what `asking.Answer` has, as a document. What others wrote is in it as it came."""
    for event in answer["events"]:
        yield _heading(event)
        for fate in event["fates"]:
            service = f"{fate['service']}: " if fate["service"] else ""
            yield f"  {service}{fate['fate']}: {fate['detail']}"
            if fate["job"] is not None:
                yield f"      job {fate['job']}"
        for line in _story(event["story"]):
            yield f"  {line}"
    if answer["events"] and answer["more"]:
        yield f"these are the newest {len(answer['events'])} of more: give more of the name, or an id"
    if not answer["events"] or answer["upstream"]:
        yield from _unknown(answer)
    for note in answer["notes"]:
        yield f"not looked at: {note}"


def _heading(event: Mapping[str, Any]) -> str:
    if not event["id"]:
        return "a job whose event is not known any more"
    names = [name for name in (event["subject"], event["key"]) if name and name != event["id"]]
    named = f"{names[0]}: " if names else ""
    return f"{named}event {event['id']} of {event['source']}"


def _begins(answer: Mapping[str, Any]) -> str:
    return "" if answer["begins"] is None else f", which begins {date(answer['begins'])}"


def _unknown(answer: Mapping[str, Any]) -> Iterator[str]:
    by = {one["whereabouts"]: one for one in reversed(answer["upstream"])}
    if there := by.get(Whereabouts.THERE):
        yield f"still upstream: {there['source']}: {there['detail']}"
    elif past := by.get(Whereabouts.PAST):
        yield f"older than the journal{_begins(answer)}: {past['source']}: {past['detail']}"
    elif answer["events"]:
        return
    elif answer["more"]:
        yield "not known: not all could be searched in the time there was"
    elif answer["begins"] is None:
        yield "never seen, as far as is known: nothing of that name is kept, and there is no journal"
    else:
        yield f"never seen: nothing of that name is in the journal{_begins(answer)}, or kept"
    for one in answer["upstream"]:
        if one["whereabouts"] in (Whereabouts.ABSENT, Whereabouts.UNKNOWN):
            yield f"  {one['source']}: {one['detail']}"


def _story(story: list[Mapping[str, Any]]) -> Iterator[str]:
    received = next((line["received"] for line in story if line.get("received")), None)
    if received is not None:
        yield f"{date(received)}  received"
    for line in story:
        service = f"{line['service']}: " if line.get("service") else ""
        yield f"{date(line['t'])}  {service}{_what(line)}"


def _what(line: Mapping[str, Any]) -> str:
    what = line["what"]
    why = ": ".join(str(line[name]) for name in ("cause", "detail") if line.get(name))
    attempts = line.get("attempts") or 0
    tries = f" at attempt {attempts}" if attempts > 1 else ""
    job = f" as job {line['job']}" if line.get("job") else ""
    number = f" {line['number']}" if line.get("number") else ""
    into = f" as {line['into']}" if line.get("into") else ""
    text = {
        "failed": "an attempt failed",
        "accepted": f"accepted{tries}{job}",
        "duplicate": f"accepted before{job}: OSCAR made no second one",
        "returned": "back in its lane",
        "released": "given back to its source",
        "dead": f"dead letter{number}{f', after {attempts} attempts' if attempts > 1 else ''}",
        "waits": "waits to be sent with others",
        "sent": f"sent with others{into}",
        "replayed": f"replayed{into}",
        "ended": "its job ended",
    }.get(what, what)
    return f"{text}: {why}" if why else text
