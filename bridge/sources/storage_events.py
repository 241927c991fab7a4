"""A storage event is one wherever it comes from: whichever store told of it, in whichever envelope.

The stores that write notifications in the form of S3 are Amazon S3 (`aws:s3`), MinIO (`minio:s3`), Ceph RGW
(`ceph:s3`) and NooBaa (`NAME:s3`). A queue or a topic brings them, and around them may be envelopes of SNS,
EventBridge and Lambda. Each record becomes an event of its own in the form that faas-supervisor reads
(`faassupervisor/events/s3.py` and `minio.py`; it reads the first record only): `{"Records": [record]}` with a
URL-encoded key. The text of a record is kept but for what the supervisor needs and it lacks; EventBridge's
other form is rewritten.

The supervisor knows two stores, by which it chooses where to fetch the object: `aws:s3` is always Amazon's
(`storage/providers/s3.py`), `minio:s3` the one that OSCAR runs on (OSCAR sets that provider,
`pkg/handlers/create.go`). A record of any other store is presented as `minio:s3`: at Amazon a bucket of its
name would be somebody else's. What the supervisor can't reach, the service's script fetches
(`DOWNLOAD_INPUT=false`, `faassupervisor/supervisor.py`).

Facts: Amazon S3 User Guide, "Event message structure" and "EventBridge event message structure"; Amazon SNS
Developer Guide, "HTTP/HTTPS notification JSON format"; AWS Lambda Developer Guide, "Using Lambda with Amazon
SQS", "… SNS", "Capturing records of asynchronous invocations"; MinIO `cmd/event-notification.go`; Ceph
`rgw/rgw_pubsub.cc`; NooBaa `util/notifications_util.js`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, quote_plus, unquote_to_bytes

from pydantic_core import from_json

from bridge.core.event import Event

Open: TypeAlias = Literal["auto", "s3", "none"]
"""Which messages are opened. `auto`: all that this module knows, and what came through SNS without a storage
event. `s3`: what S3 and MinIO tell, direct or through SNS or EventBridge. `none`: no message."""
Dropped: TypeAlias = Literal["test_event", "empty"]
"""Why there is nothing to do: a store's greeting to a new target, or no records."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A record that says it is a store's, and can't be: a dead letter."""

    event: Event
    reason: str
    """For a person."""


Part: TypeAlias = Event | Poisoned | Dropped


class Unreadable(Exception):  # noqa: N818 - a finding about one message, not an error of the bridge
    """A message is an envelope of SNS's with nothing in it, or has more records than may be opened."""


_KNOWN = frozenset({"aws:s3", "minio:s3"})
"""Stores that the supervisor knows. They URL-encode keys; all others write them as they are."""
_OTHER_STORE = ":s3"
"""What the `eventSource` of any other store ends with."""
_PRESENTED_AS = "minio:s3"
_DEEPEST = 8
"""Envelopes within envelopes: a record in SNS's, in Lambda's, in the record of a failed invocation."""
_LARGEST = 2**20
"""Bytes of a message. The envelopes of AWS have less, and to read megabytes would hold up all else."""
_KEPT = 4 * 2**10
"""Characters of a record that goes on as it was read: that takes four times the memory of its text."""
MOST_RECORDS = 1000
"""In a message. Stores write one; a megabyte has room for 300,000 empty ones, each of them a dead letter."""
_MAY_BE_ONE = re.compile(
    rb'"Records"|"Message"|"Notification"|"detail|"requestPayload"|TestEvent|"aws\.s3"|"reason"|"deletion-type"|\\u'
)
"""What of any of them is in a message; most messages that have none need not be parsed."""
_WRITES = re.compile(r"ObjectCreated:(?:Put|Post|Copy|CompleteMultipartUpload)|ObjectRemoved:\w+")
"""Names of events that make or end a version of an object. MinIO's sequencer is that version's time
(`ToEvent`), so of any other name, such as `ObjectAccessed:Get`, many occurrences have the same."""
_UNFIT = (ValueError, RecursionError)  # UnicodeError is a ValueError
_HIDDEN = "key_encoding"
"""An attribute of a message that would be said of the object's key."""

# EventBridge tells what happened by `detail-type` and, where S3 has several names for it, by `reason` and
# `deletion-type`.
_CREATED = {
    "PutObject": "Put",
    "POST Object": "Post",
    "CopyObject": "Copy",
    "CompleteMultipartUpload": "CompleteMultipartUpload",
}
_DELETED = {"Permanently Deleted": "Delete", "Delete Marker Created": "DeleteMarkerCreated"}
_OTHER = {
    "Object Restore Initiated": "ObjectRestore:Post",
    "Object Restore Completed": "ObjectRestore:Completed",
    "Object Restore Expired": "ObjectRestore:Delete",
    "Object Storage Class Changed": "LifecycleTransition",
    "Object Access Tier Changed": "IntelligentTiering",
    "Object ACL Updated": "ObjectAcl:Put",
    "Object Tags Added": "ObjectTagging:Put",
    "Object Tags Deleted": "ObjectTagging:Delete",
}


def open_message(message: Event, how: Open) -> list[Part] | None:
    """Return what the records in `message` are, in their order; None when it stays the one event that it is.

    An event's id is made of bucket, key, version (or eTag), sequencer and name of the event, so that a
    notification that is delivered twice, or by two ways, gives the same id. Where there is no sequencer
    (S3 numbers only what writes or deletes an object), the time and the store's request id stand for it;
    where these are missing too, the message's own id, so that no two occurrences are taken for one. Two ways
    then give two ids: EventBridge tells seconds where S3 tells milliseconds. What is told by no store is a
    plain event. Raise Unreadable for an envelope of SNS's without a message, and for too many records.
    """
    if how == "none" or len(message.data) > _LARGEST or _MAY_BE_ONE.search(message.data) is None:
        return None
    text = _text(message.data)
    return None if text is None else _open(text, message, how == "auto", _DEEPEST)


def may_be_one(data: bytes) -> bool:
    """Return, without parsing it, whether a message looks like a notification of a store's."""
    # `in` would take each for a number first, and make an error of it: that costs more than the search.
    return data.find(b'"Records"') >= 0 and data.find(b':s3"') >= 0


def _open(text: str, message: Event, widely: bool, depth: int) -> list[Part] | None:
    found, is_strict = _load(text) if depth else (None, False)
    if found is None:
        return None
    if found.get("Type") == "Notification" and isinstance(found.get("Message"), str):
        inner = _open(found["Message"], message, widely, depth - 1)
        if inner is None and widely and "TopicArn" in found:
            return [_from_sns(found, message)]
        return inner
    if found.get("Type") == "Notification" and "TopicArn" in found:
        raise Unreadable("an envelope of SNS's (Type, TopicArn) without a Message of text")
    if found.get("Event") == "s3:TestEvent" and found.get("Service") == "Amazon S3":
        return ["test_event"]
    if found.get("source") == "aws.s3" or _is_detail(found):
        record = _from_event_bridge(found if "detail" in found else {"detail": found})
        if record is None:
            return None
        text = json.dumps(record, separators=(",", ":"))
        return [_part(record, text, message, 0, widely, is_strict=is_strict)]
    if widely and "requestContext" in found and isinstance(found.get("requestPayload"), dict):
        return _open(_value(text, "requestPayload"), message, widely, depth - 1)
    records = found.get("Records")
    if not isinstance(records, list):
        return None
    if not records:
        return ["empty"]
    if any(_store(record, widely) or (widely and _is_test(record)) for record in records):
        _refuse_too_many(records)
        pairs = zip(records, _texts(text, found, records), strict=True)
        return [
            _part(record, text, message, at, widely, is_strict=is_strict)
            for at, (record, text) in enumerate(pairs)
        ]
    if not widely:
        return None
    return _from_lambda(zip(records, _texts(text, found, records), strict=True), message, depth - 1)


def _refuse_too_many(records: Sequence[Any]) -> None:
    if len(records) > MOST_RECORDS:
        raise Unreadable(f"more than {MOST_RECORDS} records in one message")


def _store(record: Any, widely: bool) -> str | None:
    """Return the `eventSource` of a store's record; None for anything else."""
    told = _string(record.get("eventSource")) if isinstance(record, dict) else ""
    return told if told in _KNOWN or (widely and told.endswith(_OTHER_STORE)) else None


def _is_test(record: Any) -> bool:
    return isinstance(record, dict) and "s3:TestEvent" in (record.get("Event"), record.get("eventName"))


def _from_sns(envelope: Mapping[str, Any], message: Event) -> Event:
    """Return what came through SNS and is no storage event: its message alone, the rest as attributes."""
    told = {
        "topic_arn": envelope.get("TopicArn"),
        "sns_message_id": envelope.get("MessageId"),
        "subject": envelope.get("Subject"),
    }
    attributes = {name: text for name, value in told.items() if (text := _string(value))}
    given = envelope.get("MessageAttributes")
    for name, value in given.items() if isinstance(given, dict) else ():
        text = _string(value.get("Value")) if isinstance(value, dict) else ""
        if text and _string(name):
            attributes[f"attribute.{name}"] = text
    return message.replace(
        data=envelope["Message"].encode("utf-8", "surrogatepass"),
        time=_time(envelope.get("Timestamp")) or message.time,
        attributes={**message.attributes, **attributes},
    )


def _from_lambda(pairs: Iterable[tuple[Any, str]], message: Event, depth: int) -> list[Part] | None:
    """Return what is in the records that Lambda gets of SQS or SNS; None when none of them can be opened."""
    parts: list[Part] = []
    is_one = False
    for at, (record, text) in enumerate(pairs):
        body = _of_lambda(record, text)
        inner = body if body is not None else f'{{"Records":[{text}]}}'
        whole = message.replace(id=f"{message.id}#{at}", data=inner.encode("utf-8", "surrogatepass"))
        try:
            opened = None if body is None else _open(body, whole, widely=True, depth=depth)
        except Unreadable as error:
            opened = [Poisoned(whole, str(error))]
        is_one = is_one or opened is not None
        parts += opened or [whole]
        if is_one:
            _refuse_too_many(parts)
    return parts if is_one else None


def _of_lambda(record: Any, text: str) -> str | None:
    if not isinstance(record, dict):
        return None
    if record.get("eventSource") == "aws:sqs" and isinstance(record.get("body"), str):
        return str(record["body"])
    if record.get("EventSource") == "aws:sns" and isinstance(record.get("Sns"), dict):
        return _value(text, "Sns")
    return None


def _part(record: Any, text: str, message: Event, at: int, widely: bool, *, is_strict: bool) -> Part:
    if widely and _is_test(record):
        return "test_event"
    store = _store(record, widely)
    place = None if store is None else _place(record, store)
    if store is not None and place is not None:
        presented = _presented(record, text, store, place[1], message.time)
        event = _to_event(record, presented, message, at, place)
        if is_strict and presented is text and len(text) <= _KEPT:
            event.value = {"Records": [record]}
        return event
    plain = message.replace(
        id=f"{message.id}#{at}", data=f'{{"Records":[{text}]}}'.encode("utf-8", "surrogatepass")
    )
    if store is not None:
        return Poisoned(plain, f"record {at + 1} is of {store[:40]!r} and names no object (bucket and key)")
    if not isinstance(record, dict) or not isinstance(record.get("eventSource"), str):
        return Poisoned(plain, f"record {at + 1} stands beside a store's and is none (no eventSource)")
    return plain


def _to_event(record: Any, text: str, message: Event, at: int, place: tuple[str, bytes]) -> Event:
    bucket, key = place
    thing: Mapping[str, Any] = record["s3"]["object"]
    attributes = {**message.attributes, "bucket": bucket, "key": key.decode("utf-8", "replace")}
    attributes.pop(_HIDDEN, None)
    name = _string(record.get("eventName")).removeprefix("s3:")
    size = thing.get("size")
    told = (
        ("eventName", name),
        ("size", str(size) if isinstance(size, int) else ""),
        ("eTag", _string(thing.get("eTag"))),
        ("versionId", _string(thing.get("versionId"))),
        ("sequencer", _string(thing.get("sequencer"))),
        ("region", _string(record.get("awsRegion"))),
        ("eventSource", "" if record["eventSource"] in _KNOWN else record["eventSource"]),
    )
    attributes.update({label: value for label, value in told if value})
    return Event(
        id=_identity(record, bucket, key, name) or f"{message.id}#{at}",
        source=message.source,
        type=f"aws.s3.{name or 'unknown'}",
        subject=attributes["key"],
        time=_time(record.get("eventTime")) or message.time,
        data=f'{{"Records":[{text}]}}'.encode("utf-8", "surrogatepass"),
        attributes=attributes,
    )


def _identity(record: Mapping[str, Any], bucket: str, key: bytes, name: str) -> str | None:
    thing: Mapping[str, Any] = record["s3"]["object"]
    version, tag = _string(thing.get("versionId")), _string(thing.get("eTag"))
    parts = [("event", name)]
    # "null" is the version of everything written while a bucket's versioning is off.
    parts.append(("version", version) if version not in ("", "null") else ("etag", tag))
    sequencer = _string(thing.get("sequencer"))
    if sequencer:
        # Hexadecimal, in capitals or not. Leading zeros count: S3 compares sequencers from the left.
        parts.append(("sequencer", sequencer.lower()))
    if not sequencer or (record["eventSource"] != "aws:s3" and not _WRITES.fullmatch(name)):
        answer = record.get("responseElements")
        request = _string(answer.get("x-amz-request-id")) if isinstance(answer, dict) else ""
        when = _string(record.get("eventTime"))
        if not request or not when:
            return None
        parts += [("time", when), ("request", request)]
    if not name:
        return None
    told = "&".join([f"{what}={_quoted(value)}" for what, value in parts])
    return f"s3://{quote(bucket, safe='')}/{quote(key)}?{told}"


_USUAL = re.compile(r"[A-Za-z0-9_.~:-]*")


def _quoted(value: str) -> str:
    """Quote a part of a URL's query as `quote_plus` does, which takes several times as long."""
    return value.replace(":", "%3A") if _USUAL.fullmatch(value) else quote_plus(value)


def _from_event_bridge(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give EventBridge's event as the record that S3 would have written; None when it tells no object."""
    detail = event.get("detail")
    bucket = detail.get("bucket") if isinstance(detail, dict) else None
    thing = detail.get("object") if isinstance(detail, dict) else None
    if not isinstance(detail, dict) or not isinstance(bucket, dict) or not isinstance(thing, dict):
        return None
    name, key = _string(bucket.get("name")), _string(thing.get("key"))
    if not name or not key:
        return None
    resources = event.get("resources")
    arns = resources if isinstance(resources, list) else []
    arn = next((arn for arn in arns if isinstance(arn, str) and ":s3:" in arn), f"arn:aws:s3:::{name}")
    try:
        what = {
            "key": quote_plus(key, safe="/"),
            "size": thing.get("size"),
            "eTag": _string(thing.get("etag") or thing.get("eTag")),
            "versionId": _string(thing.get("version-id")),
            "sequencer": _string(thing.get("sequencer")),
        }
    except UnicodeEncodeError:  # half a surrogate pair: no key of S3
        return None
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": _string(event.get("region")),
        **({"eventTime": time} if (time := _string(event.get("time"))) else {}),
        "eventName": _event_name(_string(event.get("detail-type")) or _kind(detail), detail),
        "requestParameters": {"sourceIPAddress": _string(detail.get("source-ip-address"))},
        "responseElements": {"x-amz-request-id": _string(detail.get("request-id"))},
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": name, "arn": arn},
            "object": {label: value for label, value in what.items() if value not in ("", None)},
        },
    }


def _is_detail(found: Mapping[str, Any]) -> bool:
    """Whether it is the `detail` of an event of EventBridge alone, as `InputPath: $.detail` leaves it."""
    return "detail" not in found and "Records" not in found and bool(_kind(found))


def _kind(detail: Mapping[str, Any]) -> str:
    """Return the `detail-type` that stood beside `detail`, as far as that tells it by itself."""
    if isinstance(detail.get("deletion-type"), str):
        return "Object Deleted"
    return "Object Created" if _string(detail.get("reason")) in _CREATED else ""


def _event_name(kind: str, detail: Mapping[str, Any]) -> str:
    reason = _string(detail.get("reason"))
    if kind == "Object Created":
        return f"ObjectCreated:{_CREATED.get(reason, reason)}"
    if kind == "Object Deleted":
        room = "LifecycleExpiration" if reason == "Lifecycle Expiration" else "ObjectRemoved"
        how = _string(detail.get("deletion-type"))
        return f"{room}:{_DELETED.get(how, how)}"
    return _OTHER.get(kind, kind)


def _presented(record: Mapping[str, Any], text: str, store: str, key: bytes, sent: datetime | None) -> str:
    """Return the text of a record as the supervisor takes it, with what it needs and the record lacks.

    The message was sent when the store told, so its time is the record's, to a second or so.
    """
    if store not in _KNOWN:
        text = _with_value(text, ("eventSource",), _PRESENTED_AS)
        text = _with_value(text, ("s3", "object", "key"), quote_plus(key, safe="/"))
    bucket: Mapping[str, Any] = record["s3"]["bucket"]
    if not _string(bucket.get("arn")):
        text = _with_member(text, ("s3", "bucket"), "arn", f"arn:aws:s3:::{bucket['name']}")
    if not _string(record.get("eventTime")):
        told = sent.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if sent else ""
        text = _with_member(text, (), "eventTime", told)
    return text


def _place(record: Mapping[str, Any], store: str) -> tuple[str, bytes] | None:
    """Return the bucket and the decoded key of a record of `store`; None when it has none."""
    try:
        bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
        if not isinstance(bucket, str) or not isinstance(key, str) or not bucket or not key:
            return None
        bucket.encode("utf-8")
        return bucket, unquote_to_bytes(key.replace("+", " ")) if store in _KNOWN else key.encode("utf-8")
    except (KeyError, TypeError, *_UNFIT):
        return None


def _string(value: Any) -> str:
    """Give text that can be encoded; nothing for anything else."""
    if not isinstance(value, str):
        return ""
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return ""
    return value


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return None if time.tzinfo is None else time


# --- The text of a record, as it was ----------------------------------------------------------------------

_DECODER = json.JSONDecoder()
_WHITE = " \t\n\r"
_SPACE = re.compile(rf"[{_WHITE}]*")


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _load(text: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the JSON object that a text is, and whether it is one by RFC 8259, nested at most 200 deep."""
    is_strict = True
    try:
        # It takes half of the time of Python's own and reads the same in what it takes, but takes less.
        found = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        is_strict = False
        try:
            found = _DECODER.decode(text)
        except _UNFIT:
            return None, False
    return (found, is_strict) if isinstance(found, dict) else (None, False)


def _texts(text: str, found: Mapping[str, Any], records: Sequence[Any]) -> Iterable[str]:
    """Give the text of each of `records`, the member of `found`, which `text` says.

    A record that is alone needs no second reading where it is all that stands between the last brackets. It
    is, if no other member has a list (the last one in the text would be it), and if the name is there once,
    however it may be spelled.
    """
    name = '"Records"'
    at = text.find(name)
    if (
        len(records) == 1
        and text.find(name, at + 1) < 0
        and "\\u" not in text
        and not any(isinstance(member, list) for member in found.values() if member is not records)
    ):
        end = text.rfind("]")
        if text[end + 1 :].strip(_WHITE) == "}":
            return [text[text.index("[", at) + 1 : end].strip(_WHITE)]
    return _elements(text, _member(text, "Records"))


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _member(text: str, wanted: str) -> int:
    """Give where the value of the last member `wanted` begins; `text` is a JSON object that has one."""
    where = 0
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # over the colon
        if key == wanted:
            where = at
        _, end = _DECODER.raw_decode(text, at)
        at = _after(text, end)
    return where


def _with_member(text: str, path: Sequence[str], name: str, value: str) -> str:
    """Return the text of a JSON object with one member more in the object at `path`, which has some."""
    if not path:
        return f"{text[:-1]},{json.dumps(name)}:{json.dumps(value)}}}"
    at = _member(text, path[0])
    _, end = _DECODER.raw_decode(text, at)
    return text[:at] + _with_member(text[at:end], path[1:], name, value) + text[end:]


def _value(text: str, name: str) -> str:
    """Return the text of the last member `name` of a JSON object that has one."""
    at = _member(text, name)
    _, end = _DECODER.raw_decode(text, at)
    return text[at:end]


def _with_value(text: str, path: Sequence[str], value: str) -> str:
    """Return the text of a JSON object with `value` in place of what the member at `path` has."""
    if not path:
        return json.dumps(value)
    at = _member(text, path[0])
    _, end = _DECODER.raw_decode(text, at)
    return text[:at] + _with_value(text[at:end], path[1:], value) + text[end:]


def _elements(text: str, at: int) -> Iterator[str]:
    """Give the text of each element of the array that begins at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield text[at:end]
        at = _after(text, end)


def _after(text: str, end: int) -> int:
    """Give where the next member or element begins, or the closing bracket is; the last one ends at `end`."""
    end = _skip(text, end)
    return _skip(text, end + 1) if text[end] == "," else end
