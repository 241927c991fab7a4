"""What becomes of one message of hermes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.pipeline.decisions import decide
from bridge.pipeline.routes import RouteConfig
from bridge.sources import NoEvent
from bridge.sources.broker.message import Message, Unreadable, Unwanted
from bridge.sources.json_reader import load
from bridge.sources.rucio import KIND
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.message import read
from tests.servers.hermes import message

ALL: frozenset[str] = frozenset()
PASSWORD_FILE = str(Path(__file__).parents[1] / "settings" / "broken" / "password")


def of(told: Any, wanted: frozenset[str] = ALL) -> Event | Unwanted | Unreadable:
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return read(Message("", body, {"destination": "/queue/rucio"}), "closed", wanted)


def test_a_message_becomes_an_event() -> None:
    body = json.dumps(message("CLOSE", number=3)).encode()
    event = of(body)
    assert isinstance(event, Event)
    assert event.type == "close"
    assert event.subject == "user.jdoe:dataset-3"
    assert event.time == datetime(2026, 1, 2, 3, 4, 5, 681901, tzinfo=UTC)
    assert event.data == body
    assert event.source == "closed"
    assert event.attributes == {"destination": "/queue/rucio"}


def test_what_hermes_repeats_is_one_event_whichever_broker_it_comes_from() -> None:
    body = json.dumps(message()).encode()
    one = read(Message("", body, {"destination": "/queue/rucio"}), "closed", ALL)
    two = read(Message("", body, {"redelivered": "true"}), "closed", ALL)
    assert isinstance(one, Event)
    assert isinstance(two, Event)
    assert one.id == two.id


@given(st.binary(), st.binary())
def test_other_bodies_are_other_events(one: bytes, two: bytes) -> None:
    found = [of(body) for body in (one, two)]
    ids = [each.event.id for each in found if isinstance(each, Unreadable)]
    assert (len(set(ids)) == 1) is (one == two)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (b"nonsense", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no event_type"),
        ({"payload": {}}, "no event_type"),
        ({"event_type": 7, "payload": {}}, "no event_type"),
        ({"event_type": "", "payload": {}}, "no event_type"),
        (b'{"event_type": "\\ud800", "payload": {}}', "no event_type"),
        ({"event_type": "close"}, "no payload"),
        ({"event_type": "close", "payload": None}, "no payload"),
        ({"event_type": "close", "payload": "text"}, "no payload"),
    ],
)
def test_what_hermes_does_not_send_is_unreadable_with_the_reason(told: Any, reason: str) -> None:
    found = of(told)
    assert isinstance(found, Unreadable)
    assert found.reason.startswith(reason)


def test_emails_and_types_that_are_not_asked_for_are_unwanted() -> None:
    assert of(message("email")) == Unwanted("email")
    assert of({"event_type": "EMAIL"}) == Unwanted("email")
    assert of(message("open"), frozenset({"close"})) == Unwanted("event_type")
    assert isinstance(of(message("close"), frozenset({"close"})), Event)


@pytest.mark.parametrize(
    ("created", "time"),
    [
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5+02:00", datetime(2026, 1, 2, 1, 4, 5, 500_000, tzinfo=UTC)),
        ("yesterday", None),
        ("0001-01-01 00:00:00+10:00", None),
        (1767323045, None),
        (None, None),
    ],
)
def test_created_at_is_utc_or_none(created: Any, time: datetime | None) -> None:
    event = of({**message(), "created_at": created})
    assert isinstance(event, Event)
    assert event.time == time


@pytest.mark.parametrize(
    "payload", [{}, {"scope": "a"}, {"name": "b"}, {"scope": 1, "name": "b"}, {"scope": "a", "name": ["b"]}]
)
def test_what_is_no_did_has_no_subject(payload: dict[str, Any]) -> None:
    event = of({"event_type": "lost", "payload": payload})
    assert isinstance(event, Event)
    assert event.subject is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["close", "email", 1]),
    st.text(),
)
def test_nothing_that_is_json_raises(payload: Any, kind: Any, created: str) -> None:
    found = of({"event_type": kind, "payload": payload, "created_at": created})
    assert isinstance(found, (Event, Unreadable, Unwanted))


tokens = [*"{}[]:, \n", '"a"', '"b\\u00e9"', '"\\ud800"', '"\\n"', '"\n"', '"\x00"', "null"]
numbers = ["0", "-0", "1e999", "-1.5E-3", "01", "1.", "9" * 30, "0.1", "1e-400", "NaN", "-Infinity", "nan"]
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(
    st.lists(st.sampled_from(tokens + numbers)).map("".join).map(str.encode)
    | st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ).flatmap(
        lambda told: st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]).map(
            lambda coding: json.dumps(told, ensure_ascii=False).encode(coding, "replace")
        )
    )
)
@example(b'{"a": 1, "a": [2, 2.0]}')
@example(b"[" * 100_000)
@example(b"[" * 500 + b"]" * 500)
def test_a_body_is_read_as_pythons_json_reads_it(body: bytes) -> None:
    try:
        expected = json.loads(body)
    except (ValueError, RecursionError) as error:
        with pytest.raises(type(error)):
            load(body)
    else:
        assert repr(load(body)) == repr(expected)


def config(**more: Any) -> RucioConfig:
    return RucioConfig.model_validate(
        {
            "type": "rucio",
            "protocol": "stomp",
            "brokers": "mq:61613, mq2:61613",
            "destination": "/queue/rucio",
            "username": "bridge",
            "password": "swordfish",
            **more,
        }
    )


def test_a_configuration_can_say_what_becomes_of_a_message() -> None:
    told = config(event_types=["Close"])
    assert told.brokers == ("mq:61613", "mq2:61613")

    def ask(body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return KIND.events_of(told, Event(id="1", source="closed", type="", data=data, attributes={"a": "b"}))

    (event,) = ask(message())
    assert (event.type, event.subject, event.attributes) == ("close", "user.jdoe:dataset-0", {"a": "b"})
    assert ask(message("open")) == [NoEvent("event_type")]
    (said,) = ask(b"nonsense")
    assert said.dead
    assert said.reason.startswith("not JSON")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"brokers": "mq"}, "HOST:PORT"),
        ({"brokers": []}, "at least 1"),
        ({"destination": "rucio"}, "/queue/"),
        ({"destination": None}, "needs destination"),
        ({"queue": "a"}, "means nothing"),
        ({"declare": {}}, "means nothing"),
        ({"protocol": "amqp"}, "needs queue"),
        ({"protocol": "amqp", "queue": "a"}, "destination means nothing"),
        ({"selector": "event_type = 'close'"}, "stalls it"),
        ({"client_id": "a"}, "together"),
        ({"client_id": "a", "subscription": "b"}, "to a topic"),
        ({"username": None}, "or neither"),
        ({"username": None, "password": None}, "tls with cert_file"),
        ({"event_types": ["email"]}, "never taken"),
        ({"tls": {"key_file": "/dev/null"}}, "cert_file too"),
        ({"heartbeat": "500ms"}, "greater than or equal to 1"),
        ({"password_file": PASSWORD_FILE}, "not both"),
    ],
)
def test_a_configuration_that_can_not_be_meant_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**more)


@pytest.mark.parametrize(
    ("recipe", "kind", "payload", "services"),
    [
        ("rucio", "close", {"custom_metadata": {"oscar-service": "plants"}}, ["plants"]),
        ("rucio", "close", {"custom_metadata": {"oscar-service": "other"}}, ["not_allowed"]),
        ("rucio", "close", {"custom_metadata": {}}, ["missing_key"]),
        ("rucio", "close", {}, ["missing_key"]),
        ("rucio", "open", {"custom_metadata": {"oscar-service": "plants"}}, "event_type"),
        ("rucio-stomp", "transfer-done", {"dst-rse": "IFCA-DISK", "scope": "intertwin"}, ["ingest"]),
        ("rucio-stomp", "transfer-done", {"dst-rse": "CERN-DISK", "scope": "intertwin"}, []),
        ("rucio-stomp", "transfer-done", {"dst-rse": "IFCA-DISK", "scope": "user.jdoe"}, []),
        ("rucio-stomp", "transfer-failed", {"dst-rse": "IFCA-DISK", "scope": "intertwin"}, "event_type"),
        ("rucio-stomp", "datasetlock_ok", {"rse": "IFCA-TAPE", "scope": "intertwin"}, ["analyse"]),
        ("rucio-stomp", "datasetlock_ok", {"rse": "CERN-TAPE", "scope": "intertwin"}, []),
        ("rucio-stomp", "rule_ok", {"scope": "intertwin", "name": "final.v1"}, ["publish"]),
        ("rucio-stomp", "rule_ok", {"scope": "intertwin", "name": "draft.v1"}, []),
    ],
)
def test_the_recipes_choose_what_they_say(
    recipe: str, kind: str, payload: dict[str, Any], services: list[str] | str
) -> None:
    told = yaml.safe_load((Path(__file__).parents[2] / "config" / f"{recipe}.yaml").read_text())
    (kinds,) = (each["event_types"] for each in told["sources"].values())
    found = of(message(kind, **payload), frozenset(kinds))
    if isinstance(services, str):
        assert found == Unwanted(services)
        return
    assert isinstance(found, Event)
    decisions = decide([RouteConfig.model_validate(route) for route in told["routes"]], found)
    chosen = [each.service or each.reason for each in decisions]
    assert [each for each in chosen if each != "no_match"] == services
