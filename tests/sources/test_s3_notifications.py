from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import pytest
from faassupervisor.events import parse_event
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.destinations.oscar.payload import encode
from bridge.sources.sqs.s3 import Unreadable, open_notification

KEYS = ["in/leaf.jpg", "in/a b+c%20d.jpg", "in/ñandú 🌿.jpg", "in//x&y=1?.jpg", "in/$HOME/*[a].jpg"]


def message(body: Any, id: str = "m-1") -> Event:  # noqa: A002 - as CloudEvents names it
    data = body if isinstance(body, str) else json.dumps(body)
    return Event(
        id=id,
        source="bucket",
        type="com.amazonaws.sqs.message",
        time=datetime(2026, 1, 31, tzinfo=UTC),
        data=data.encode("utf-8", "surrogatepass"),
        attributes={"receive_count": "1"},
    )


def record(key: str = "in/leaf.jpg", **changes: Any) -> dict[str, Any]:
    """A record as S3 writes it (User Guide, "Event message structure")."""
    thing = {
        "key": quote_plus(key, safe="/"),
        "size": 1024,
        "eTag": "d41d8cd98f00b204e9800998ecf8427e",
        "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
        "sequencer": "0055AED6DCD90281E5",
        **changes.pop("object", {}),
    }
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-west-1",
        "eventTime": "2026-01-31T12:00:00.123Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "to-oscar",
            "bucket": {"name": "field", "arn": "arn:aws:s3:::field"},
            "object": {name: value for name, value in thing.items() if value is not None},
        },
        **changes,
    }


def from_sns(body: Any) -> dict[str, Any]:
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:…", "Message": json.dumps(body)}


def from_event_bridge(key: str = "in/leaf.jpg", **detail: Any) -> dict[str, Any]:
    """An event as EventBridge brings it (User Guide, "EventBridge event message structure")."""
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": detail.pop("kind", "Object Created"),
        "source": "aws.s3",
        "account": "111122223333",
        "time": "2026-01-31T12:00:00Z",
        "region": "eu-west-1",
        "resources": ["arn:aws:s3:::field"],
        "detail": {
            "version": "0",
            "bucket": {"name": "field"},
            "object": {
                "key": key,
                "size": 1024,
                "etag": "d41d8cd98f00b204e9800998ecf8427e",
                "version-id": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
                "sequencer": "0055AED6DCD90281E5",
            },
            "request-id": "C3D13FE58DE4C810",
            "requester": "123456789012",
            "source-ip-address": "127.0.0.1",
            "reason": "PutObject",
            **detail,
        },
    }


def events(body: Any, id: str = "m-1") -> list[Event]:  # noqa: A002 - likewise
    opened = open_notification(message(body, id))
    assert isinstance(opened, list)
    return opened


def test_a_record_becomes_an_event_with_what_s3_told() -> None:
    [event] = events({"Records": [record("in/a b.jpg")]})
    assert event.type == "aws.s3.ObjectCreated:Put"
    assert event.subject == "in/a b.jpg"
    assert event.time == datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=UTC)
    assert event.attributes == {
        "receive_count": "1",
        "bucket": "field",
        "key": "in/a b.jpg",
        "eventName": "ObjectCreated:Put",
        "size": "1024",
        "eTag": "d41d8cd98f00b204e9800998ecf8427e",
        "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
        "sequencer": "0055AED6DCD90281E5",
        "region": "eu-west-1",
    }
    assert event.id == (
        "s3://field/in/a%20b.jpg?event=ObjectCreated%3APut&version=096fKKXTRTtl3on89fVO.nfljtsv6qko"
        "&sequencer=0055aed6dcd90281e5"
    )


def test_each_record_keeps_its_text() -> None:
    records = ['{"eventSource" :"aws:s3", "n":1.10, "e":1e400}', json.dumps(record("b"), indent=1)]
    array = f"[ {records[0]} ,\t{records[1]}\n ]"
    body = f' {{"a":{{"Records":[1]}},"Records":[7],\n"Rec\\u006frds" : {array} , "z":[]}}'
    assert [event.data.decode() for event in events(body)] == [f'{{"Records":[{text}]}}' for text in records]


def test_a_malformed_record_is_a_plain_event_beside_its_siblings() -> None:
    broken: list[Any] = [
        record(object={"key": None}),
        record(s3={}),
        record(eventSource="aws:ses"),
        7,
        record(object={"key": ""}),
    ]
    opened = events({"Records": [*broken, record("in/ok")]})
    assert [event.id for event in opened[:-1]] == [f"m-1#{at}" for at in range(len(broken))]
    assert {event.type for event in opened[:-1]} == {"com.amazonaws.sqs.message"}
    assert [json.loads(event.data) for event in opened[:-1]] == [{"Records": [each]} for each in broken]
    assert opened[-1].subject == "in/ok"


@pytest.mark.parametrize("wrap", [lambda body: body, from_sns])
def test_a_test_event_and_an_empty_notification_are_dropped(wrap: Any) -> None:
    greeting = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "field", "RequestId": "x"}
    assert open_notification(message(wrap(greeting))) == "test_event"
    assert open_notification(message(wrap({"Records": []}))) == "empty"


@pytest.mark.parametrize(
    "body",
    [
        "plain",
        "",
        "7",
        "[]",
        '{"Records": 7}',
        '{"Records": [{"eventSource": "aws:ses"}]}',
        '{"Event": "s3:TestEvent"}',
        '{"Type": "Notification", "Message": "hello"}',
        '{"Type": "Notification", "Message": {"Records": []}}',
        '{"source": "aws.s3", "detail-type": "Object Created", "detail": {"object": {"key": "k"}}}',
        '{"source": "aws.s3", "detail-type": "Object Created", "detail": "x"}',
        '{"bucket": {"name": "field"}, "object": {"key": "k"}}',
        '{"reason": "PutObject", "bucket": {"name": "field"}}',
        '{"reason": "PutObject", "detail": {}, "bucket": {"name": "field"}, "object": {"key": "k"}}',
        '{"source": "aws.s3"}',
        '{"source": "aws.ec2", "detail-type": "Object Created", "detail": {}}',
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"Records": [' + "[" * 100_000,
    ],
)
def test_anything_else_stays_as_it_is(body: str) -> None:
    assert open_notification(message(body)) is None


@pytest.mark.parametrize("inner", [{}, {"Message": None}, {"Message": {"Records": []}}])
def test_an_envelope_of_sns_with_nothing_in_it_is_unreadable(inner: dict[str, Any]) -> None:
    body = {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t", **inner}
    with pytest.raises(Unreadable, match="without a Message"):
        open_notification(message(body))


# Identity


def ids(*bodies: Any) -> set[str]:
    return {event.id for at, body in enumerate(bodies) for event in events(body, f"m-{at}")}


@pytest.mark.parametrize("key", KEYS)
def test_every_envelope_gives_one_id(key: str) -> None:
    direct = {"Records": [record(key)]}
    bridged = from_event_bridge(key)
    assert len(ids(direct, direct, from_sns(direct), bridged, from_sns(bridged))) == 1


def test_the_encoding_of_a_key_makes_no_other_id() -> None:
    spelled = [record(object={"key": key}) for key in ("in/a+b", "in/a%20b", "in%2Fa%20b")]
    assert len(ids({"Records": spelled})) == 1


def test_without_a_version_the_etag_stands_for_it() -> None:
    thing = {"versionId": None}
    bridged = from_event_bridge()
    del bridged["detail"]["object"]["version-id"]
    [one] = ids(
        {"Records": [record(object=thing)]}, bridged, {"Records": [record(object={"versionId": "null"})]}
    )
    assert "etag=d41d8cd98f00b204e9800998ecf8427e" in one


@pytest.mark.parametrize(
    "other",
    [
        record(object={"sequencer": "0055AED6DCD90281E6"}),
        record(object={"sequencer": "55AED6DCD90281E5"}),
        record(object={"versionId": "other"}),
        record(object={"versionId": None}),
        record("in/Leaf.jpg"),
        record(object={"key": "in/%FF"}),
        record(object={"key": "in/%FE"}),
        record(eventName="ObjectCreated:Copy"),
        record(eventName="ObjectTagging:Put", object={"sequencer": None}),
        record(s3=record()["s3"] | {"bucket": {"name": "other"}}),
    ],
)
def test_another_occurrence_is_another_id(other: dict[str, Any]) -> None:
    same = record(object={"key": "in/%EF%BF%BD"})
    assert len(ids({"Records": [record()]}, {"Records": [same]}, {"Records": [other]})) == 3


def test_without_a_sequencer_time_and_request_tell_occurrences_apart() -> None:
    first = record(object={"sequencer": None})
    later = first | {"eventTime": "2026-01-31T12:00:01.123Z"}
    beside = first | {"responseElements": {"x-amz-request-id": "OTHER"}}
    assert len(ids({"Records": [first]}, {"Records": [first]})) == 1, "S3 delivered it twice"
    assert len(ids({"Records": [first, later, beside]})) == 3


@pytest.mark.parametrize("missing", ["responseElements", "eventTime", "eventName"])
def test_doubt_makes_a_new_id(missing: str) -> None:
    doubtful = record(object={"sequencer": None})
    del doubtful[missing]
    assert ids({"Records": [doubtful]}, {"Records": [doubtful]}) == {"m-0#0", "m-1#0"}


@pytest.mark.parametrize(
    ("kind", "detail", "name"),
    [
        ("Object Created", {"reason": "PutObject"}, "ObjectCreated:Put"),
        ("Object Created", {"reason": "POST Object"}, "ObjectCreated:Post"),
        ("Object Created", {"reason": "CopyObject"}, "ObjectCreated:Copy"),
        ("Object Created", {"reason": "CompleteMultipartUpload"}, "ObjectCreated:CompleteMultipartUpload"),
        (
            "Object Deleted",
            {"reason": "DeleteObject", "deletion-type": "Permanently Deleted"},
            "ObjectRemoved:Delete",
        ),
        (
            "Object Deleted",
            {"reason": "DeleteObject", "deletion-type": "Delete Marker Created"},
            "ObjectRemoved:DeleteMarkerCreated",
        ),
        (
            "Object Deleted",
            {"reason": "Lifecycle Expiration", "deletion-type": "Permanently Deleted"},
            "LifecycleExpiration:Delete",
        ),
        ("Object Restore Completed", {}, "ObjectRestore:Completed"),
        ("Object Tags Added", {}, "ObjectTagging:Put"),
        ("Object Something New", {}, "Object Something New"),
    ],
)
def test_event_bridge_names_what_s3_names(kind: str, detail: dict[str, Any], name: str) -> None:
    bridged = from_event_bridge(kind=kind, **detail)
    direct = {"Records": [record(eventName=name)]}
    [event] = events(bridged)
    assert event.type == f"aws.s3.{name}"
    assert ids(bridged) == ids(direct)


def test_a_record_of_minio_keeps_its_source_and_is_named_like_s3s() -> None:
    told = record(eventName="s3:ObjectCreated:Put", eventSource="minio:s3")
    [event] = events({"EventName": "s3:ObjectCreated:Put", "Key": "field/in/leaf.jpg", "Records": [told]})
    assert event.type == "aws.s3.ObjectCreated:Put"
    assert json.loads(event.data) == {"Records": [told]}


# What OSCAR's supervisor makes of it


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("wrap", ["direct", "sns", "event bridge", "minio"])
def test_the_supervisor_sees_bucket_and_key(key: str, wrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):  # what it sets is taken back at the end
        monkeypatch.setenv(name, "")
    body = {
        "direct": {"Records": [record(key)]},
        "sns": from_sns({"Records": [record(key)]}),
        "event bridge": from_event_bridge(key),
        "minio": {"Records": [record(key, eventSource="minio:s3")]},
    }[wrap]
    [event] = events(body)
    seen = parse_event(encode(event).decode("ascii"))
    assert seen.get_type() == ("MINIO" if wrap == "minio" else "S3")
    assert (seen.bucket_name, seen.object_key) == ("field", key)
    if wrap != "minio":
        assert seen.bucket_arn == "arn:aws:s3:::field"


def bare(**changes: Any) -> dict[str, Any]:
    """A record as an input transformer of EventBridge's makes it."""
    return {
        "eventSource": "aws:s3",
        "s3": {"bucket": {"name": "field"}, "object": {"key": "in/leaf.jpg"}},
        **changes,
    }


_DETAIL = from_event_bridge()["detail"]


@pytest.mark.parametrize(
    ("body", "time"),
    [
        ({"Records": [bare()]}, "2026-01-31T00:00:00.000Z"),
        (from_sns({"Records": [bare()]}), "2026-01-31T00:00:00.000Z"),
        ({"Records": [bare(eventSource="minio:s3")]}, "2026-01-31T00:00:00.000Z"),
        ({"Records": [bare(eventTime=None)]}, "2026-01-31T00:00:00.000Z"),
        ({"Records": [bare(eventTime="2026-01-01T00:00:00Z")]}, "2026-01-01T00:00:00Z"),
        (_DETAIL, "2026-01-31T00:00:00.000Z"),
        (from_sns(_DETAIL), "2026-01-31T00:00:00.000Z"),
        ({"source": "aws.s3", "detail": _DETAIL}, "2026-01-31T00:00:00.000Z"),
        (
            {"source": "aws.s3", "detail-type": "Object Created", "detail": _DETAIL},
            "2026-01-31T00:00:00.000Z",
        ),
    ],
)
def test_what_a_transformer_left_out_is_added_for_the_supervisor(
    body: Any, time: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):
        monkeypatch.setenv(name, "")
    [event] = events(body)
    assert event.subject == "in/leaf.jpg"
    seen = parse_event(encode(event).decode("ascii"))
    assert seen.get_type() in ("S3", "MINIO")
    assert (seen.bucket_arn, seen.bucket_name) == ("arn:aws:s3:::field", "field")
    assert (seen.object_key, seen.event_time) == ("in/leaf.jpg", time)


def test_what_is_added_leaves_the_rest_of_a_record_as_it_was() -> None:
    text = (
        '{"eventSource":"aws:s3","s3":{"bucket":{"name":"x"}},"n":1.10, "s3" :{"object":{"key":"k"}, '
        '"bucket":{"name":"field" } }, "e":1e400 }'
    )
    [event] = events(f'{{"Records":[{text}]}}')
    assert event.data.decode() == (
        '{"Records":[{"eventSource":"aws:s3","s3":{"bucket":{"name":"x"}},"n":1.10, '
        '"s3" :{"object":{"key":"k"}, "bucket":{"name":"field" ,"arn":"arn:aws:s3:::field"} }, "e":1e400 '
        ',"eventTime":"2026-01-31T00:00:00.000Z"}]}'
    )


def test_the_time_of_the_message_is_no_part_of_an_identity() -> None:
    assert ids({"Records": [bare()]}, {"Records": [bare()]}) == {"m-0#0", "m-1#0"}
    assert ids(_DETAIL) == ids(from_event_bridge())


def test_without_any_time_there_is_none_and_the_event_is_a_storage_event_all_the_same() -> None:
    opened = open_notification(replace(message({"Records": [bare()]}), time=None))
    assert isinstance(opened, list)
    assert json.loads(opened[0].data)["Records"][0]["eventTime"] == ""
    assert encode(opened[0]).startswith(b"{")


# Whatever comes

_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ("Records", "s3", "bucket", "object", "name", "key", "eventSource", "detail", "x")
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(_JSON, st.sampled_from(("aws:s3", "minio:s3", "x")))
def test_no_record_breaks_it(value: Any, origin: str) -> None:
    one = value | {"eventSource": origin} if isinstance(value, dict) else value
    for body in (
        value,
        {"Records": [one, record()]},
        {"Records": [record(s3=value), record(object={"eTag": value}), record(responseElements=value)]},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": value, "resources": value},
        {"reason": "PutObject", "bucket": value, "object": value, "deletion-type": value},
        {"source": "aws.s3", "detail": value},
        from_event_bridge() | {"time": value, "region": value, "resources": value},
        {"Type": "Notification", "Message": json.dumps(one)},
    ):
        opened = open_notification(message(body))
        if isinstance(opened, list):
            assert len({event.id for event in opened} | {""}) >= 2
            for event in opened:
                event.id.encode()
                (event.subject or "").encode()
                json.loads(event.data)


@given(_TEXT, _TEXT)
def test_any_key_comes_back_whatever_the_envelope(bucket: str, key: str) -> None:
    direct = record(key)
    direct["s3"]["bucket"]["name"] = bucket
    bridged = from_event_bridge(key, bucket={"name": bucket})
    for body in ({"Records": [direct]}, bridged):
        [event] = events(body)
        assert (event.attributes["bucket"], event.subject) == (bucket, key)
        [written] = json.loads(event.data)["Records"]
        assert unquote_plus(written["s3"]["object"]["key"]) == key
    assert len(ids({"Records": [direct]}, bridged)) == 1


_PART = st.sampled_from(("a", "b", "a/b", "a?event=x", "a&sequencer=1", "%61", "", "null"))


@given(st.tuples(*[_PART] * 5), st.tuples(*[_PART] * 5))
def test_no_two_occurrences_share_an_id(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    def made(parts: tuple[str, ...]) -> dict[str, Any]:
        bucket, key, tag, sequencer, name = parts
        told = record(
            key or "k",
            eventName=name or "n",
            object={"eTag": tag, "versionId": None, "sequencer": sequencer or "0"},
        )
        told["s3"]["bucket"]["name"] = bucket or "b"
        return {"Records": [told]}

    def meant(parts: tuple[str, ...]) -> tuple[str, ...]:
        bucket, key, tag, sequencer, name = parts
        return bucket or "b", key or "k", tag, sequencer or "0", name or "n"

    assert (ids(made(one)) == ids(made(other))) == (meant(one) == meant(other))


@given(st.text(max_size=20), st.integers(0, 3))
def test_half_a_surrogate_pair_breaks_nothing(text: str, where: int) -> None:
    bad = text + "\ud800"
    bodies = (
        {"Records": [record(object={"key": bad})]},
        from_event_bridge(bad),
        {"Records": [record(eventName=bad)]},
        from_sns({"Records": [record(object={"eTag": bad})]}),
    )
    opened = open_notification(message(bodies[where]))
    for event in opened if isinstance(opened, list) else [replace(message(bodies[where]))]:
        event.id.encode()
        (event.subject or "").encode()
        "".join(event.attributes.values()).encode()
