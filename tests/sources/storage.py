"""Storage events as each store writes them, and the envelopes that they come in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from faassupervisor.events import parse_event

from bridge.core.event import Event
from bridge.destinations.oscar.payload import encode

LONGEST_KEY = "in/" + "🌿" * 255 + "z"
"""1,024 bytes, the most that S3 takes."""
KEYS = (
    "in/leaf.jpg",
    "in/a b+c%20d.jpg",
    "in/ñandú 🌿.jpg",
    "in//x&y=1?.jpg",
    "in/$HOME/*[a].jpg",
    "folder/",
    LONGEST_KEY,
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


def from_minio(
    key: str = "in/leaf.jpg", *, name: str = "s3:ObjectCreated:Put", **changes: Any
) -> dict[str, Any]:
    """A notification of MinIO's (`cmd/event-notification.go`)."""
    told = record(eventSource="minio:s3", eventVersion="2.0", eventName=name, awsRegion="", **changes)
    told["s3"]["object"]["key"] = quote_plus(key)
    told["requestParameters"]["principalId"] = "minio"
    return {"EventName": name, "Key": f"field/{key}", "Records": [told]}


def from_ceph(key: str = "in/leaf.jpg", **changes: Any) -> dict[str, Any]:
    """A notification of Ceph RGW's (`rgw/rgw_pubsub.cc`): its keys are not encoded."""
    told = record(eventSource="ceph:s3", eventVersion="2.2", **changes)
    told["s3"]["object"] |= {"key": key, "metadata": [], "tags": []}
    told["s3"]["bucket"] |= {"arn": "arn:aws:s3:default::field", "id": "503a4c37"}
    return {"Records": [told | {"eventId": "1575221657.900000.a", "opaqueData": "me@example.org"}]}


def from_noobaa(key: str = "in/leaf.jpg", **changes: Any) -> dict[str, Any]:
    """A notification of NooBaa's (`util/notifications_util.js`): its keys are not encoded."""
    told = record(eventSource="noobaa:s3", eventVersion="2.3", **changes)
    told["s3"]["object"] |= {"key": key, "sequencer": "19c1d6b0e3b"}
    del told["awsRegion"]
    return {"Records": [told]}


def for_lambda_of_sqs(*bodies: Any) -> dict[str, Any]:
    return {
        "Records": [
            {
                "messageId": f"059f36b4-{at}",
                "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
                "body": body if isinstance(body, str) else json.dumps(body),
                "attributes": {"ApproximateReceiveCount": "1"},
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
            }
            for at, body in enumerate(bodies)
        ]
    }


def for_lambda_of_sns(*bodies: Any) -> dict[str, Any]:
    return {
        "Records": [
            {
                "EventVersion": "1.0",
                "EventSource": "aws:sns",
                "Sns": {**from_sns(body), "MessageId": "95df01b4"},
            }
            for body in bodies
        ]
    }


def of_failed_lambda(payload: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 3},
        "requestPayload": payload,
        "responsePayload": {"errorType": "Error"},
    }


TEST_EVENTS: tuple[dict[str, Any], ...] = (
    {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "field", "RequestId": "x"},
    {"Records": [{"eventVersion": "2.3", "eventSource": "noobaa:s3", "eventName": "s3:TestEvent"}]},
    {"Records": [{"Service": "noobaa:s3", "Event": "s3:TestEvent", "Bucket": "field"}]},
)


@dataclass(frozen=True, slots=True)
class Case:
    """One message, and what the supervisor is to see of it."""

    name: str
    body: Any
    keys: Sequence[str] = ()
    """Of its objects, in the order of its events."""
    stores: Sequence[str] = ()
    """What the supervisor calls the store of each."""
    poisoned: int = 0
    """Records that become dead letters."""
    dropped: int = 0
    """Test events."""


def corpus() -> Iterator[Case]:
    """Give one message of each kind, each about objects of its own."""
    stores = {
        "s3": (lambda key: {"Records": [record(key)]}, "S3"),
        "event bridge": (from_event_bridge, "S3"),
        "detail": (lambda key: from_event_bridge(key)["detail"], "S3"),
        "minio": (from_minio, "MINIO"),
        "ceph": (from_ceph, "MINIO"),
        "noobaa": (from_noobaa, "MINIO"),
    }
    envelopes: dict[str, Any] = {
        "bare": lambda body: body,
        "sns": from_sns,
        "lambda of sqs": for_lambda_of_sqs,
        "lambda of sns": for_lambda_of_sns,
        "failed lambda": lambda body: of_failed_lambda(for_lambda_of_sqs(body)),
    }
    for store, (make, kind) in stores.items():
        for key in KEYS:
            yield Case(f"{store} {key[:20]}", make(key), [key], [kind])
    for envelope, wrap in envelopes.items():
        for store, (make, kind) in stores.items():
            key = f"{envelope}/{store}"
            yield Case(key, wrap(make(key)), [key], [kind])
        for at, greeting in enumerate(TEST_EVENTS):
            yield Case(f"{envelope}/test event {at}", wrap(greeting), dropped=1)
        keys = [f"{envelope}/several/{at}" for at in range(3)]
        records = [record(keys[0]), *from_ceph(keys[1])["Records"], *from_minio(keys[2])["Records"]]
        yield Case(f"{envelope}/several", wrap({"Records": records}), keys, ["S3", "MINIO", "MINIO"])
        good, other = f"{envelope}/good", f"{envelope}/other"
        records = [record(good), record(s3={}), *TEST_EVENTS[1]["Records"], record(other)]
        yield Case(f"{envelope}/poisoned", wrap({"Records": records}), [good, other], ["S3"] * 2, 1, 1)
    versions = [record("versioned", object={"versionId": version}) for version in ("one", "two")]
    yield Case("versions", {"Records": versions}, ["versioned"] * 2, ["S3"] * 2)
    gone = from_minio("gone", name="s3:ObjectRemoved:Delete", object={"eTag": None, "size": None})
    yield Case("delete", gone, ["gone"], ["MINIO"])
    marker = record(
        "marked", eventName="ObjectRemoved:DeleteMarkerCreated", object={"eTag": None, "size": None}
    )
    yield Case("delete marker", {"Records": [marker]}, ["marked"], ["S3"])
    partial = {"eventSource": "ceph:s3", "s3": {"bucket": {"name": "field"}, "object": {"key": "part ial"}}}
    yield Case("partial", {"Records": [partial]}, ["part ial"], ["MINIO"])


def seen_by_supervisor(event: Event) -> tuple[str, str, str]:
    """Give the kind of store, bucket and key that faas-supervisor reads of an event's payload.

    It sets variables of the environment, which who calls this takes back.
    """
    seen = parse_event(encode(event).decode("ascii"))
    assert seen.bucket_arn.endswith(":field")
    assert isinstance(seen.event_time, str)
    return seen.get_type(), seen.bucket_name, seen.object_key
