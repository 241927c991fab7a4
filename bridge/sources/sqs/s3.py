"""S3's notifications: one Event a record, whichever envelope brings it.

S3 writes to a queue itself, through SNS, or through EventBridge. Whatever the way, each record becomes an
event of its own in the form that faas-supervisor reads (`faassupervisor/events/s3.py`; it reads the first
record only): `{"Records": [record]}` with a URL-encoded key. The text of a record that S3 wrote is kept;
EventBridge's other form is rewritten. A record of MinIO keeps its `eventSource` `minio:s3`, by which the
supervisor knows whose credentials to fetch the object with.

Facts: Amazon S3 User Guide, "Event message structure" and "EventBridge event message structure".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote_to_bytes, urlencode

from bridge.core.event import Event

Dropped = Literal["test_event", "empty"]
"""Why a notification holds nothing to do: S3's greeting to a new target, or no records."""


class Unreadable(Exception):  # noqa: N818 - a finding about one message, not an error of the bridge
    """A message is an envelope of SNS's, and nothing is in it."""


_ORIGINS = ("aws:s3", "minio:s3")
_UNFIT = (ValueError, RecursionError)  # UnicodeError is a ValueError

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


def open_notification(message: Event) -> list[Event] | Dropped | None:
    """Give the events of the records in `message`, why it holds none, or None when it is no notification.

    An event's id is made of bucket, key, version (or eTag), sequencer and name of the event, so that a
    notification that S3 delivers twice, or by two ways, gives the same id. Where there is no sequencer
    (S3 numbers only what writes or deletes an object), the time and S3's request id stand for it; where
    these are missing too, the message's own id, so that no two occurrences are taken for one. Two ways
    then give two ids: EventBridge tells seconds where S3 tells milliseconds. A record without bucket or
    key is a plain event. Raise Unreadable for an envelope of SNS's without a message.
    """
    text = _text(message.data)
    found = None if text is None else _load(text)
    if text is None or found is None:
        return None
    if found.get("Type") == "Notification" and isinstance(found.get("Message"), str):
        text = found["Message"]
        found = _load(text)
        if found is None:
            return None
    elif found.get("Type") == "Notification" and "TopicArn" in found:
        raise Unreadable("an envelope of SNS's (Type, TopicArn) without a Message of text")
    if found.get("Event") == "s3:TestEvent" and found.get("Service") == "Amazon S3":
        return "test_event"
    if found.get("source") == "aws.s3" or _is_detail(found):
        record = _from_event_bridge(found if "detail" in found else {"detail": found})
        if record is None:
            return None
        return [_to_event(record, json.dumps(record, separators=(",", ":")), message, 0)]
    records = found.get("Records")
    if not isinstance(records, list):
        return None
    if not records:
        return "empty"
    if not any(isinstance(record, dict) and record.get("eventSource") in _ORIGINS for record in records):
        return None
    texts = _elements(text, _member(text, "Records"))
    return [
        _to_event(record, text, message, at)
        for at, (record, text) in enumerate(zip(records, texts, strict=True))
    ]


def _to_event(record: Any, text: str, message: Event, at: int) -> Event:
    place = _place(record)
    if place is not None:
        text = _completed(record, text, message.time)
    data = f'{{"Records":[{text}]}}'.encode("utf-8", "surrogatepass")
    if place is None:
        return Event(
            id=f"{message.id}#{at}",
            source=message.source,
            type=message.type,
            time=message.time,
            data=data,
            attributes=message.attributes,
        )
    bucket, key = place
    thing: Mapping[str, Any] = record["s3"]["object"]
    attributes = {"bucket": bucket, "key": key.decode("utf-8", "replace")}
    name = _string(record.get("eventName")).removeprefix("s3:")
    size = thing.get("size")
    told = {
        "eventName": name,
        "size": str(size) if isinstance(size, int) else "",
        "eTag": _string(thing.get("eTag")),
        "versionId": _string(thing.get("versionId")),
        "sequencer": _string(thing.get("sequencer")),
        "region": _string(record.get("awsRegion")),
    }
    attributes |= {label: value for label, value in told.items() if value}
    return Event(
        id=_identity(record, bucket, key, name) or f"{message.id}#{at}",
        source=message.source,
        type=f"aws.s3.{name or 'unknown'}",
        subject=attributes["key"],
        time=_time(record.get("eventTime")) or message.time,
        data=data,
        attributes={**message.attributes, **attributes},
    )


def _identity(record: Mapping[str, Any], bucket: str, key: bytes, name: str) -> str | None:
    thing: Mapping[str, Any] = record["s3"]["object"]
    version, tag = _string(thing.get("versionId")), _string(thing.get("eTag"))
    parts = [("event", name)]
    # "null" is the version of everything written while a bucket's versioning is off.
    parts.append(("version", version) if version not in ("", "null") else ("etag", tag))
    if sequencer := _string(thing.get("sequencer")):
        # Hexadecimal, in capitals or not. Leading zeros count: S3 compares sequencers from the left.
        parts.append(("sequencer", sequencer.lower()))
    else:
        answer = record.get("responseElements")
        request = _string(answer.get("x-amz-request-id")) if isinstance(answer, dict) else ""
        when = _string(record.get("eventTime"))
        if not request or not when:
            return None
        parts += [("time", when), ("request", request)]
    if not name:
        return None
    return f"s3://{quote(bucket, safe='')}/{quote(key)}?{urlencode(parts)}"


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


def _completed(record: Mapping[str, Any], text: str, sent: datetime | None) -> str:
    """Return the text of a record with what the supervisor needs and it lacks.

    The message was sent when S3 told, so its time is the record's, to a second or so.
    """
    bucket: Mapping[str, Any] = record["s3"]["bucket"]
    if not _string(bucket.get("arn")):
        text = _with_member(text, ("s3", "bucket"), "arn", f"arn:aws:s3:::{bucket['name']}")
    if not _string(record.get("eventTime")):
        told = sent.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if sent else ""
        text = _with_member(text, (), "eventTime", told)
    return text


def _place(record: Any) -> tuple[str, bytes] | None:
    """Give a record's bucket and decoded key; None when it has none."""
    try:
        if record["eventSource"] not in _ORIGINS:
            return None
        bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
        if not isinstance(bucket, str) or not isinstance(key, str) or not bucket or not key:
            return None
        bucket.encode("utf-8")
        return bucket, unquote_to_bytes(key.replace("+", " "))
    except (KeyError, TypeError, *_UNFIT):
        return None


def _string(value: Any) -> str:
    """Give text that can be encoded; nothing for anything else."""
    if not isinstance(value, str):
        return ""
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
_SPACE = re.compile(r"[ \t\n\r]*")


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _load(text: str) -> dict[str, Any] | None:
    try:
        found = _DECODER.decode(text)
    except _UNFIT:
        return None
    return found if isinstance(found, dict) else None


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
        at = _after(text, at)
    return where


def _with_member(text: str, path: Sequence[str], name: str, value: str) -> str:
    """Return the text of a JSON object with one member more in the object at `path`, which has some."""
    if not path:
        return f"{text[:-1]},{json.dumps(name)}:{json.dumps(value)}}}"
    at = _member(text, path[0])
    _, end = _DECODER.raw_decode(text, at)
    return text[:at] + _with_member(text[at:end], path[1:], name, value) + text[end:]


def _elements(text: str, at: int) -> Iterator[str]:
    """Give the text of each element of the array that begins at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield text[at:end]
        at = _after(text, at)


def _after(text: str, at: int) -> int:
    """Give where the next member or element begins, or the closing bracket stands."""
    _, end = _DECODER.raw_decode(text, at)
    end = _skip(text, end)
    return _skip(text, end + 1) if text[end] == "," else end
