"""What would become of an event, without a network."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from bridge.checkup import json_of_preview, lines_of_preview, preview
from bridge.checkup.preview import Preview, ends_of
from bridge.checkup.routes import check_routes
from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.sources import NoEvent
from tests.check.test_local import settings

ROUTES = [
    {"from": "uploads", "when": "data.size > 0", "to": "plants"},
    {"from": "uploads", "when": "data.kind == 'flood'", "to": "flood"},
    {"from": "uploads", "when": "data.size + 'x' == 'y'", "to": "flood"},
    {"from": "uploads", "to": "data.service", "allow": ["plants", "flood"]},
]
SERVICES: dict[str, Any] = {
    "plants": {"service": "plant-classification"},
    "flood": {"mode": "run", "max_event_bytes": 40},
}


def event(data: dict[str, Any], **more: Any) -> Event:
    return Event(id="7", source="uploads", type="t", data=json.dumps(data).encode(), **more)


def look(message: Event, tmp_path: Path, **more: Any) -> list[Preview]:
    found = preview(
        settings(tmp_path, **{"services": SERVICES, "routes": ROUTES, **more}), "uploads", message
    )
    assert not any(isinstance(one, NoEvent) for one in found)
    return [one for one in found if isinstance(one, Preview)]


def test_each_route_says_what_it_makes_of_an_event(tmp_path: Path) -> None:
    (one,) = look(event({"size": 1, "service": "trees"}), tmp_path)
    reasons = [(decision.service, decision.reason) for decision in one.decisions]
    assert reasons == [("plants", ""), (None, "missing_key"), (None, "route"), (None, "not_allowed")]
    assert "data.size + 'x'" in one.decisions[2].detail
    text = "\n".join(lines_of_preview(one, with_job=True))
    for words in ("yes, to plants", "does not have", "dead letter: `data.size + 'x'", "not in `allow`"):
        assert words in text


def test_data_that_is_no_object_is_told_as_the_router_takes_it(tmp_path: Path) -> None:
    routes = [
        {"from": "uploads", "when": "data.size > 0", "to": "plants"},
        {"from": "uploads", "when": "!has(data.size)", "to": "flood"},
    ]
    found = {}
    for data in (b"", b"null", b"[1]", b"plain"):
        message = Event(id="7", source="uploads", type="t", data=data)
        (one,) = look(message, tmp_path, routes=routes)
        found[data] = [decision.reason or decision.service for decision in one.decisions]
        text = "\n".join(lines_of_preview(one, with_job=True))
        assert ("dead letter: `data.size > 0`: " in text) is (data == b"plain")
    assert found.pop(b"plain") == ["not_json", "flood"]
    assert list(found.values()) == [["missing_key", "flood"]] * 3


def test_a_service_is_shown_with_the_payload_and_the_job_it_would_get(tmp_path: Path) -> None:
    (one,) = look(event({"size": 1, "name": "leaf*"}), tmp_path)
    (service,) = one.services
    assert service.payload == '{"size":1,"name":"leaf\\u002a"}'
    assert service.job == invocation_name("uploads", "7", "plant-classification")
    text = "\n".join(lines_of_preview(one, with_job=True))
    assert "POST /job/plant-classification" in text
    assert f"{len(service.payload)} bytes of 131065" in text
    assert service.job in text
    assert service.job not in "\n".join(lines_of_preview(one, with_job=False))


def test_an_event_too_large_for_one_service_is_its_dead_letter(tmp_path: Path) -> None:
    (one,) = look(event({"size": 1, "kind": "flood", "filler": "x" * 600}), tmp_path)
    plants, flood = one.services
    assert plants.payload is not None
    assert flood.payload is None
    assert flood.job is None, "a run has no job"
    assert flood.cause == "too_large"
    text = "\n".join(lines_of_preview(one, with_job=True))
    assert "dead letter: too_large" in text
    assert "…" in text, "a long payload is cut for a person"
    assert json_of_preview(one)["services"][0]["payload"] == plants.payload, "and whole for a machine"


def test_an_event_for_nobody_says_so(tmp_path: Path) -> None:
    (one,) = look(event({"size": 0, "kind": "fire"}), tmp_path)
    assert not one.services
    assert "goes to no service" in "\n".join(lines_of_preview(one, with_job=True))


def test_an_s3_notification_is_shown_as_one_event_a_record(tmp_path: Path) -> None:
    record = {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "b"}, "object": {"key": "a+b.nc", "sequencer": "1"}},
    }
    second = json.loads(json.dumps(record).replace("a+b", "c"))
    sources = {"uploads": {"type": "sqs", "queue": "q", "region": "eu-west-1"}}
    routes = [{"from": "uploads", "when": "subject.endsWith('.nc')", "to": "plants"}]
    found = look(event({"Records": [record, second]}), tmp_path, sources=sources, routes=routes)
    assert [one.event.subject for one in found] == ["a b.nc", "c.nc"]
    assert len({one.services[0].job for one in found}) == 2
    greeting = event({"Service": "Amazon S3", "Event": "s3:TestEvent"})
    told = preview(settings(tmp_path, services=SERVICES, sources=sources, routes=routes), "uploads", greeting)
    assert told == [NoEvent("test_event")]


def test_a_route_that_decodes_shows_what_the_service_would_get(tmp_path: Path) -> None:
    routes = [
        {"from": "uploads", "when": "data.size > 0", "to": "plants", "decode": "base64"},
        {"from": "uploads", "when": "data.size > 0", "to": "flood", "decode": "gzip"},
    ]
    message = Event(id="7", source="uploads", type="t", data=base64.b64encode(b'{"size": 1}'))
    (one,) = look(message, tmp_path, routes=routes)
    assert [service.payload for service in one.services] == ['{"size":1}']
    assert one.decisions[1].reason == "undecodable"
    assert "can't be decoded: not gzip: " in "\n".join(lines_of_preview(one, with_job=True))


def test_an_event_that_goes_together_with_others_is_told_with_its_window(tmp_path: Path) -> None:
    routes = [
        {"from": "uploads", "to": "plants", "complete": {"marker": 'subject.endsWith("/.done")'}},
        {"from": "uploads", "to": "plants"},
    ]
    loaded = settings(tmp_path, routes=routes)
    message = Event(id="1", source="uploads", type="t", subject="/in/a/.done", data=b"{}")
    (told,) = preview(loaded, "uploads", message)
    assert isinstance(told, Preview)
    first, _ = told.decisions
    assert first.place == ("folder", "/in/a", True)
    assert told.services == []
    assert [(end.service, end.route, end.sent, end.dead_letter) for end in ends_of([told])] == [
        ("plants", 1, None, "")
    ]
    assert "the marker that closes the window of key /in/a" in "\n".join(
        lines_of_preview(told, with_job=True)
    )
    found = check_routes(loaded)
    assert [finding.severity for finding in found] == ["note", "note", "warning"]
    assert "at least once" in found[0].message
