"""What spares a payload a search or a second reading changes nothing of it: the long way is the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from bridge.core.event import Event
from bridge.destinations.oscar import payload
from bridge.destinations.oscar.payload import encode
from bridge.sources import storage_events
from bridge.sources.storage_events import Open, Unreadable, open_message
from tests.destinations.in_pod import event
from tests.sources.storage import corpus, from_minio, record

NAMES = (
    *("Records", "requestParameters", "userIdentity", "ownerIdentity", "s3", "bucket", "object"),
    *("principalId", "storage_provider", "event", "event_type", "httpMethod", "eventSource", "a"),
)
WORDS = (
    *("root", "principalId", '"principalId":', "storage_provider", "[", "a [b", "  ", " ", "\x7f", "é", "😀"),
    *("\\", "\n", "aws:s3"),
)
PUT = (
    *(b"", b"[", b'"', b"\\", b",", b"\0", b"-", b"e5", b"NaN", b"\\u0041"),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
)
principals = st.fixed_dictionaries({}, optional={"principalId": st.just("root"), "a": st.sampled_from(WORDS)})
buckets = st.fixed_dictionaries({"bucket": st.fixed_dictionaries({"ownerIdentity": principals})})
records = st.fixed_dictionaries(
    {},
    optional={
        "userIdentity": principals,
        "requestParameters": principals | st.just([1]),
        "responseElements": principals,
        "s3": buckets,
    },
)
anything = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        | st.fixed_dictionaries({"Records": st.lists(records, max_size=2)})
        | st.fixed_dictionaries({"event": inner})
    ),
    max_leaves=12,
)
choosing: st.SearchStrategy[Any] = st.deferred(
    lambda: st.fixed_dictionaries(
        {"Records": st.lists(records, max_size=2)},
        optional={"storage_provider": st.just("minio.x"), "a": principals, "event": choosing},
    )
)
"""What may choose credentials."""


def written(draw: st.DrawFn, value: Any) -> bytes:
    """JSON with keys in any spelling and repeated, in white space or without; or what is nearly JSON."""
    white = draw(st.sampled_from([("", ""), ("", ""), (" ", " "), ("", "\n  ")]))
    text = spelled(draw, value, *white, escaped=draw(st.booleans()), repeated=draw(st.booleans()))
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 7)) == 0:
        at, gone = draw(st.integers(0, len(data))), draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from(PUT)) + data[at + gone :]
    return data


def spelled(draw: st.DrawFn, value: Any, before: str, after: str, *, escaped: bool, repeated: bool) -> str:
    def again(value: Any) -> str:
        return spelled(draw, value, before, after, escaped=escaped, repeated=repeated)

    if isinstance(value, list):
        return f"[{before}" + f",{after}".join(map(again, value)) + "]"
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    members: list[str] = []
    for key, member in value.items():
        name = json.dumps(key)
        if escaped and key and draw(st.booleans()):
            at = draw(st.integers(1, len(key)))
            name = f"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"
        values = [member]
        if repeated and draw(st.integers(0, 2)) == 0:
            values.insert(draw(st.integers(0, 1)), draw(st.sampled_from([member, {}, [], "x"])))
        members += [f"{name}:{after}{again(each)}" for each in values]
    return f"{{{before}" + f",{after}".join(members) + "}"


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    return written(draw, draw(choosing | anything))


@st.composite
def notifications(draw: st.DrawFn) -> bytes:
    """What a store told in some envelope, spelled anew, and perhaps changed."""
    body = json.loads(json.dumps(draw(st.sampled_from([case.body for case in corpus()]))))
    for _ in range(draw(st.integers(0, 2))):
        holder, name = draw(st.sampled_from(list(members_of(body))))
        holder[name] = json.loads(json.dumps(draw(anything)))  # what is drawn stays as it is
    return written(draw, body)


def members_of(value: Any) -> Iterator[tuple[Any, Any]]:
    for name, member in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, name
        if isinstance(member, (dict, list)):
            yield from members_of(member)


def encode_the_long_way(given: Event, **how: Any) -> bytes | str:
    with pytest.MonkeyPatch.context() as patch:
        quick = payload._re_encode
        patch.setattr(payload, "_load", lambda data: payload._parse(data.decode("utf-8")))
        patch.setattr(payload, "_may_choose_credentials", lambda *_: True)
        patch.setattr(payload, "_LONGEST_FORM", float("inf"))
        patch.setattr(payload, "_re_encode", lambda data: quick(data + b"\n"))  # it has a line to take away
        return encoded(given.replace(), **how)  # a copy, of which nothing was read


def encoded(given: Event, **how: Any) -> bytes | str:
    """What `encode` gives or raises."""
    try:
        return encode(given, **how)
    except payload.PayloadError as error:
        return str(error)


def open_the_long_way(message: Event, how: Open) -> Any:
    def load(text: str) -> tuple[Any, bool]:
        try:
            found = storage_events._DECODER.decode(text)
        except (ValueError, RecursionError):
            return None, False
        return (found if isinstance(found, dict) else None), False

    def texts(text: str, *_: Any) -> Any:
        return storage_events._elements(text, storage_events._member(text, "Records"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_events, "_load", load)
        patch.setattr(storage_events, "_texts", texts)
        return opened(message, how)


def opened(message: Event, how: Open) -> Any:
    """What `open_message` gives or raises."""
    try:
        return open_message(message, how)
    except Unreadable as error:
        return str(error)


@settings(max_examples=300)
@given(data=documents() | notifications(), limit=st.sampled_from([payload.MAX_EVENT_BYTES, 400]))
def test_every_short_cut_leads_to_what_the_long_way_leads_to(data: bytes, limit: int) -> None:
    assert encoded(event(data), max_bytes=limit) == encode_the_long_way(event(data), max_bytes=limit)


@settings(max_examples=30)
@given(data=documents())
def test_a_trusted_source_and_a_cloudevent_take_no_short_cut_that_leads_elsewhere(data: bytes) -> None:
    for how in ({"trusted": True}, {"mode": "cloudevent"}):
        assert encoded(event(data), **how) == encode_the_long_way(event(data), **how)


def beside(members: str) -> bytes:
    """An object with these members, in which each RECORD is one of a store's."""
    return f"{{{members}}}".replace("RECORD", json.dumps(record())).encode()


@settings(max_examples=100)
@given(data=notifications() | documents(), how=st.sampled_from(["auto", "s3"]))
@example(data=beside('"Records":[RECORD],"a":[{}]'), how="s3")
@example(data=beside('"a":1,"Records":[RECORD],"a":[{}]'), how="s3")
@example(data=beside('"a":[1],"Records":[RECORD],"a":{"b":[1]}'), how="s3")
@example(data=beside('"Records":[7],"Records":[RECORD]'), how="s3")
@example(data=beside('"Records":[7],"\\u0052ecords":[RECORD]'), how="s3")
@example(data=beside('"\\u0052ecords":[7],"Records":[RECORD]'), how="s3")
@example(data=beside('"Records" : [ RECORD ] ,"Key":"]}" '), how="s3")
@example(data=beside('"Records":[RECORD]').replace(b'"eventVersion"', b'"n":NaN,"eventVersion"'), how="s3")
def test_a_notification_is_opened_and_encoded_as_if_each_part_were_read_anew(data: bytes, how: Open) -> None:
    message = Event(id="m", source="bucket", type="com.amazonaws.sqs.message", data=data)
    parts = opened(message, how)
    assert parts == open_the_long_way(message, how)
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Event):
            assert part.value is None or repr(part.value) == repr(payload._parse(part.data.decode("utf-8")))
            assert encoded(part) == encode_the_long_way(part)


@given(
    data=documents() | st.text('{}[]":,0123456789eE+-.ntfrualsNIy\\ \t\ufeff', max_size=30).map(str.encode)
)
@example(b"[" * 199 + b"]" * 199)
@example(b"[" * 200 + b"]" * 200)
@example(b"[" * 201 + b"]" * 201)
@example(b"[" * 100_000)
@example(b"9" * 4300)
@example(b"-" + b"9" * 4301)
@example(b"[" + b"1" * 50_000 + b"]")
@example(b"1." + b"9" * 5000)
@example(b"1e400")
@example(b"-1e400")
@example(b"[-0,-0.0,0e5,1E5,1e-400,0.1e1,123456789012345678901234567890,9223372036854775808]")
@example(b"NaN")
@example(b"[Infinity]")
@example(b"-Infinity")
@example(rb'"\ud800"')
@example(rb'["\ud83d\ude00","\ude00\ud83d","\uD83D\u0041"]')
@example(rb'{"a":1,"\u0061":2,"a":3}')
@example(b'"\xed\xa0\x80"')
@example(b'"\xc0\x80"')
@example(b'"\x7f"')
@example(b'"\x1f"')
@example(b'{"a":1}\0')
@example(b'\xef\xbb\xbf{"a":1}')
@example('{"a":1}'.encode("utf-16"))
@example('{"a":1}'.encode("utf-16-le"))
@example('{"a":1}'.encode("utf-32-be"))
@example(b'\x0b{"a":1}')
@example(b'\x0c{"a":1}\xc2\xa0')
def test_what_the_quick_reader_takes_the_other_reads_as_the_same(data: bytes) -> None:
    """Order and kinds of numbers too. What it refuses costs time alone."""
    try:
        value = from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return
    assert repr(value) == repr(payload._parse(data.decode("utf-8")))


@settings(max_examples=30)
@given(value=anything)
def test_no_form_of_json_is_so_much_longer_than_another(value: Any) -> None:
    brief = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for text in (brief, "9e15", "[1e15,-1e15]", '"\x7f"', "[1e400]", "{}", "[[]]"):
        assert len(json.dumps(json.loads(text))) <= payload._LONGEST_FORM * len(
            text.encode("utf-8", "surrogatepass")
        )


def notified(body: Any) -> Event:
    data = json.dumps(body, separators=(",", ":")).encode()
    return Event(id="m", source="bucket", type="com.amazonaws.sqs.message", data=data)


def test_a_notification_is_read_once_and_searched_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[Any] = []

    def reading(text: Any, **how: Any) -> Any:
        readings.append(text)
        return from_json(text, **how)

    told = record("in/leaf.jpg", userIdentity={"principalId": "AWS:AIDA"})
    told["s3"]["bucket"]["ownerIdentity"] = {"principalId": "A3NL"}
    message = notified({"Records": [told]})
    for module in (payload, storage_events):
        monkeypatch.setattr(module, "from_json", reading)
    for longer in ("_elements", "_member"):
        monkeypatch.setattr(storage_events, longer, None)
    for longer in ("_parse", "_without_credentials", "_check_stored", "_long_escapes"):
        monkeypatch.setattr(payload, longer, None)
    [part] = open_message(message, "s3") or []
    assert isinstance(part, Event)
    assert part.data == message.data
    assert json.loads(encode(part)) == {"Records": [told]}
    assert len(readings) == 1


def test_what_was_read_of_a_notification_is_what_it_says() -> None:
    told = from_minio("in/leaf.jpg")
    [part] = open_message(notified(told), "s3") or []
    assert isinstance(part, Event)
    assert part.value == json.loads(part.data) == {"Records": told["Records"]}
    assert json.loads(encode(part, trusted=True)) == part.value
    del told["Records"][0]["requestParameters"]["principalId"]  # it chooses credentials
    assert json.loads(encode(part)) == {"Records": told["Records"]}
    assert part.replace(data=b"7").value is None
