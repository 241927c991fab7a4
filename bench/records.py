"""The events of the bench."""

from __future__ import annotations

import json

PARTITIONS = 4


def body(number: int) -> bytes:
    """Give record `number` as Python's producers write JSON: 300 to 1,000 bytes, with spaces and an array."""
    return json.dumps(
        {
            "n": number,
            "name": key(number),
            "size": 1024 + number,
            "checksum": {"type": "adler32", "value": f"{number:08x}"},
            "tags": ["raw", "plants"],
            "note": note(number),
        }
    ).encode()


def key(number: int) -> str:
    """Give the key of record `number`: a path, which the route looks at."""
    return f"run-{number // 1000}/leaf-{number:08d}.nc"


def note(number: int) -> str:
    """Give the text that makes bodies differ in size, of 110 to 810 bytes."""
    return " ".join(["Kept as it came from the instrument."] * (3 + number % 20))


_BODIES = [body(number) for number in range(1000)]
_NUMBER = len(b'{"n": ')


def numbered(number: int) -> bytes:
    """Give a body of number `number` that is as one of the first 1,000 else: no two are alike, soon made."""
    template = _BODIES[number % len(_BODIES)]
    return b'{"n": %d%b' % (number, template[template.index(b",", _NUMBER) :])


def notification(number: int) -> bytes:
    """Give what S3 tells of object `number` (Amazon S3 User Guide, "Event message structure")."""
    created = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-west-1",
        "eventTime": "2026-11-30T18:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AWS:AIDAIT2UOQQY3AUEKVGXU"},
        "requestParameters": {"sourceIPAddress": "192.0.2.7"},
        "responseElements": {
            "x-amz-request-id": f"C3D13FE58DE4{number:04X}",
            "x-amz-id-2": "FMyUVURIY8/IgAtTv8xR",
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "uploads",
            "bucket": {
                "name": "plants",
                "ownerIdentity": {"principalId": "A3NL1KOZZKExample"},
                "arn": "arn:aws:s3:::plants",
            },
            "object": {
                "key": key(number),
                "size": 1024 + number,
                "eTag": f"{number:032x}",
                "sequencer": f"{number:018X}",
            },
        },
    }
    return json.dumps({"Records": [created]}, separators=(",", ":")).encode()
