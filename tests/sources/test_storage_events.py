from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import pytest
from faassupervisor.events import parse_event
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.destinations.oscar.payload import encode
from bridge.sources.storage_events import MOST_RECORDS, Open, Part, Poisoned, Unreadable, open_message
from tests.sources.storage import (
    KEYS,
    Case,
    corpus,
    for_lambda_of_sns,
    for_lambda_of_sqs,
    from_ceph,
    from_event_bridge,
    from_minio,
    from_noobaa,
    from_sns,
    of_failed_lambda,
    record,
    seen_by_supervisor,
)

HOWS: tuple[Open, ...] = ("auto", "s3", "none")


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


def parts(body: Any, id: str = "m-1", how: Open = "auto") -> list[Part]:  # noqa: A002 - likewise
    opened = open_message(message(body, id), how)
    assert opened is not None
    return opened


def events(body: Any, id: str = "m-1", how: Open = "auto") -> list[Event]:  # noqa: A002 - likewise
    opened = parts(body, id, how)
    assert all(isinstance(part, Event) for part in opened), opened
    return [part for part in opened if isinstance(part, Event)]


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
    datas = [
        (part.event if isinstance(part, Poisoned) else part).data.decode()
        for part in parts(body)
        if not isinstance(part, str)
    ]
    assert datas == [f'{{"Records":[{text}]}}' for text in records]


def test_a_malformed_record_is_poisoned_alone_and_keeps_what_was_received() -> None:
    broken: list[Any] = [
        record(object={"key": None}),
        record(s3={}),
        7,
        record(object={"key": ""}),
        record(eventSource="ceph:s3", s3=[]),
        record(eventSource=None),
    ]
    opened = parts({"Records": [*broken, record("in/ok")]})
    poisoned = [part for part in opened if isinstance(part, Poisoned)]
    assert [part.event.id for part in poisoned] == [f"m-1#{at}" for at in range(len(broken))]
    assert [json.loads(part.event.data) for part in poisoned] == [{"Records": [each]} for each in broken]
    assert "record 1 is of 'aws:s3' and names no object" in poisoned[0].reason
    assert "record 3 stands beside a store's" in poisoned[2].reason
    (good,) = opened[len(broken) :]
    assert isinstance(good, Event)
    assert good.subject == "in/ok"


def test_what_another_service_than_a_store_tells_is_a_plain_event_beside_its_siblings() -> None:
    letter = record(eventSource="aws:ses")
    plain, good = events({"Records": [letter, record("in/ok")]})
    assert (plain.id, plain.type) == ("m-1#0", "com.amazonaws.sqs.message")
    assert json.loads(plain.data) == {"Records": [letter]}
    assert good.subject == "in/ok"


@pytest.mark.parametrize("wrap", [lambda body: body, from_sns])
def test_a_test_event_and_an_empty_notification_are_dropped(wrap: Any) -> None:
    greeting = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "field", "RequestId": "x"}
    assert parts(wrap(greeting)) == ["test_event"]
    assert parts(wrap({"Records": []})) == ["empty"]


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
    for how in HOWS:
        assert open_message(message(body), how) is None


@pytest.mark.parametrize("inner", [{}, {"Message": None}, {"Message": {"Records": []}}])
def test_an_envelope_of_sns_with_nothing_in_it_is_unreadable(inner: dict[str, Any]) -> None:
    body = {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t", **inner}
    with pytest.raises(Unreadable, match="without a Message"):
        open_message(message(body), "s3")


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
    opened = open_message(message({"Records": [bare()]}).replace(time=None), "s3")
    assert opened is not None
    [event] = opened
    assert isinstance(event, Event)
    assert json.loads(event.data)["Records"][0]["eventTime"] == ""
    assert encode(event).startswith(b"{")


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


@given(_JSON, st.sampled_from(("aws:s3", "minio:s3", "ceph:s3", "aws:sqs", "x")))
def test_no_record_breaks_it_nor_what_is_beside_it(value: Any, origin: str) -> None:
    one = value | {"eventSource": origin} if isinstance(value, dict) else value
    for body in (
        value,
        {"Records": [one, record()]},
        {"Records": [record(s3=value), record(object={"eTag": value}), record(responseElements=value)]},
        {"Records": [record(s3=value, eventSource="ceph:s3"), record(eventTime=value, eventName=value)]},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": value, "resources": value},
        {"reason": "PutObject", "bucket": value, "object": value, "deletion-type": value},
        {"source": "aws.s3", "detail": value},
        from_event_bridge() | {"time": value, "region": value, "resources": value},
        {"Type": "Notification", "Message": json.dumps(one)},
        {"Type": "Notification", "TopicArn": value, "Message": "7", "MessageAttributes": value},
        {"Records": [{"eventSource": "aws:sqs", "body": json.dumps({"Records": [one]})}, value]},
        {"Records": [{"EventSource": "aws:sns", "Sns": value}, value]},
        {"requestContext": value, "requestPayload": {"Records": [one, value]}},
    ):
        for how in HOWS:
            opened = [part for part in open_message(message(body), how) or [] if not isinstance(part, str)]
            for part in opened:
                event = part.event if isinstance(part, Poisoned) else part
                assert event.id
                event.id.encode()
                (event.subject or "").encode()
                "".join(event.attributes.values()).encode()
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
    for part in open_message(message(bodies[where]), "auto") or [message(bodies[where])]:
        assert not isinstance(part, str)
        event = part.event if isinstance(part, Poisoned) else part
        event.id.encode()
        (event.subject or "").encode()
        "".join(event.attributes.values()).encode()


# Whatever store and envelope


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what the supervisor sets."""
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("case", list(corpus()), ids=lambda case: case.name)
def test_the_supervisor_reads_what_each_store_told_in_each_envelope(case: Case) -> None:
    opened = parts(case.body)
    found = [part for part in opened if isinstance(part, Event)]
    assert [seen_by_supervisor(event) for event in found] == [
        (store, "field", key) for store, key in zip(case.stores, case.keys, strict=True)
    ]
    for event, key in zip(found, case.keys, strict=True):
        assert (event.attributes["bucket"], event.attributes["key"], event.subject) == ("field", key, key)
    assert sum(isinstance(part, Poisoned) for part in opened) == case.poisoned
    assert opened.count("test_event") == case.dropped
    assert len({event.id for event in found}) == len(found)


@pytest.mark.parametrize("make", [from_ceph, from_noobaa, lambda: for_lambda_of_sqs({"Records": [record()]})])
def test_what_a_queue_always_was_taken_for_it_is_taken_for_unless_asked(make: Any) -> None:
    assert open_message(message(make()), "s3") is None
    assert open_message(message(make()), "auto") is not None


def test_a_record_of_another_store_keeps_its_text_but_for_what_the_supervisor_needs() -> None:
    text = (
        '{"eventSource" : "ceph:s3", "n":1.10, "s3":{"object":{"size":1e1, "key" :"a b%20+.nc", "z":[]},'
        '"bucket":{"name":"field","arn":"a:b:field"}},"eventTime":"2026-01-31T12:00:00Z"}'
    )
    [event] = events(f'{{"Records":[{text}]}}')
    expected = text.replace('"ceph:s3"', '"minio:s3"').replace('"a b%20+.nc"', '"a+b%2520%2B.nc"')
    assert event.data.decode() == f'{{"Records":[{expected}]}}'
    assert event.attributes["eventSource"] == "ceph:s3"


def test_what_came_through_sns_and_is_no_storage_event_is_its_message_alone() -> None:
    envelope = {
        "Type": "Notification",
        "MessageId": "95df01b4",
        "TopicArn": "arn:aws:sns:eu-west-1:1:t",
        "Subject": "new data",
        "Message": '{"station": 7}',
        "Timestamp": "2026-01-30T12:00:00.000Z",
        "MessageAttributes": {"kind": {"Type": "String", "Value": "hourly"}},
    }
    [event] = events(envelope)
    assert (event.id, event.type, event.data) == ("m-1", "com.amazonaws.sqs.message", b'{"station": 7}')
    assert event.time == datetime(2026, 1, 30, 12, tzinfo=UTC)
    assert event.attributes == {
        "receive_count": "1",
        "topic_arn": "arn:aws:sns:eu-west-1:1:t",
        "sns_message_id": "95df01b4",
        "subject": "new data",
        "attribute.kind": "hourly",
    }
    assert open_message(message(envelope), "s3") is None


def test_messages_for_lambda_that_hold_no_storage_event_stay_whole_and_one_beside_it_is_alone() -> None:
    assert open_message(message(for_lambda_of_sqs("hello", "{}")), "auto") is None
    plain, good = events(for_lambda_of_sqs("hello", from_minio()))
    assert (plain.id, plain.data) == ("m-1#0", b"hello")
    assert good.subject == "in/leaf.jpg"


def test_an_envelope_with_nothing_in_it_is_poisoned_alone_among_the_records_for_lambda() -> None:
    body = for_lambda_of_sns(from_minio("one"), {}, from_minio("two"))
    del body["Records"][1]["Sns"]["Message"]
    one, poisoned, two = parts(body)
    assert isinstance(poisoned, Poisoned)
    assert "without a Message" in poisoned.reason
    assert [part.subject for part in (one, two) if isinstance(part, Event)] == ["one", "two"]


def test_what_minio_tells_twice_is_one_event() -> None:
    again = from_minio()
    again["Records"][0] |= {"eventTime": "2026-01-31T12:00:09.000Z", "responseElements": {}}
    assert len(ids(from_minio(), again, from_sns(from_minio()))) == 1


@pytest.mark.parametrize("name", ["s3:ObjectAccessed:Get", "s3:ObjectCreated:PutTagging"])
def test_what_minio_numbers_by_the_version_alone_is_told_apart_by_time_and_request(name: str) -> None:
    first, second, third = (from_minio(name=name) for _ in range(3))
    second["Records"][0]["eventTime"] = "2026-01-31T12:00:09.000Z"
    third["Records"][0]["responseElements"] = {}
    assert len(ids(first, first)) == 1
    assert len(ids(first, second, third)) == 3


def test_the_attributes_of_a_record_are_the_object_s() -> None:
    told = {"key": "AAE=", "key_encoding": "base64", "topic": "t"}
    carrier = message(from_minio()).replace(attributes=told)
    opened = open_message(carrier, "auto")
    assert opened is not None
    assert isinstance(opened[0], Event)
    assert opened[0].attributes.keys() >= {"topic", "key", "size"}
    assert opened[0].attributes["key"] == "in/leaf.jpg"
    assert "key_encoding" not in opened[0].attributes


def test_what_is_longer_than_any_envelope_is_not_parsed() -> None:
    body = json.dumps({"Records": [record()], "z": "z" * 2**20})
    assert open_message(message(body), "auto") is None


def test_a_message_has_a_thousand_records_and_no_more() -> None:
    records = [record(), *[{}] * (MOST_RECORDS - 1)]
    assert len(parts({"Records": records})) == MOST_RECORDS
    with pytest.raises(Unreadable, match="more than 1000 records"):
        parts({"Records": [*records, {}]})


def test_records_that_come_in_several_envelopes_are_counted_together() -> None:
    half = {"Records": [record(), *[{}] * (MOST_RECORDS // 2)]}
    both = {"Records": [*for_lambda_of_sqs(half)["Records"], *for_lambda_of_sqs(half)["Records"]]}
    with pytest.raises(Unreadable, match="more than 1000 records"):
        parts(both)


def test_an_envelope_with_too_many_records_stops_none_beside_it() -> None:
    many = for_lambda_of_sqs({"Records": [record(), *[{}] * MOST_RECORDS]})["Records"]
    found = parts({"Records": [*many, *for_lambda_of_sqs({"Records": [record()]})["Records"]]})
    assert [type(part) for part in found] == [Poisoned, Event]


@given(
    st.lists(
        st.sampled_from((from_minio, from_ceph, from_noobaa, lambda key: {"Records": [record(key)]})),
        min_size=1,
        max_size=4,
    ),
    st.lists(_TEXT, min_size=4, max_size=4, unique=True),
    st.lists(st.sampled_from((from_sns, for_lambda_of_sqs, for_lambda_of_sns, of_failed_lambda)), max_size=3),
    st.integers(0, 4),
)
def test_any_records_of_any_stores_in_any_envelopes_and_a_poisoned_one_among_them(
    makers: Any, keys: list[str], wraps: Any, at: int
) -> None:
    records = [make(key)["Records"][0] for make, key in zip(makers, keys, strict=False)]
    records.insert(at, record(s3={"bucket": 7}))
    body: Any = {"Records": records}
    for wrap in wraps:
        body = wrap(body)
    opened = parts(body)
    assert sum(isinstance(part, Poisoned) for part in opened) == 1
    assert [part.subject for part in opened if isinstance(part, Event)] == keys[: len(makers)]
