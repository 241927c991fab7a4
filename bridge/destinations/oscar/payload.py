"""From an Event to the bytes that reach the user's script unharmed.

OSCAR copies the body of `/job` into the environment variable `EVENT` of a pod, and `/bin/sh` runs an unquoted
`echo $EVENT | supervisor` there (OSCAR `pkg/handlers/job.go`). On this way Kubernetes expands `$(NAME)` and
`$$`; the shell splits words and expands those that are patterns; dash's echo reads backslash escapes; Linux
refuses one environment string above 131,072 bytes. At its end faas-supervisor guesses what the event is
(`faassupervisor/events/__init__.py`) and fails on what it does not expect.

So a JSON object that the supervisor can take goes as ASCII JSON with nothing in it that any of these reads,
re-encoded on the tokens of its text: numbers, the order of keys and duplicate keys stay. Everything else goes
as base64 of the original bytes, which the supervisor decodes into the script's input file.

Measured with dash 0.5.12, bash 5.2 and busybox ash 1.35. Where `/bin/sh` is mksh, whose echo reads `\\uXXXX`
and whose words undergo brace expansion, no JSON survives: `payload: base64` is for that.
"""

from __future__ import annotations

import base64
import json
import re
from itertools import accumulate
from typing import Any, Literal, NoReturn
from urllib.parse import unquote_plus

from pydantic_core import from_json

from bridge.core.errors import BridgeError
from bridge.core.event import Event

Mode = Literal["auto", "base64", "cloudevent"]
"""`auto`: JSON objects as JSON, else base64. `base64`: everything. `cloudevent`: CloudEvents 1.0 in JSON."""

MAX_EVENT_BYTES = 131_065
"""The longest value of `EVENT` that starts: Linux allows 131,072 bytes (32 pages) with name, `=` and NUL."""

MAX_INTERLINK_BYTES = 98_298
"""The longest body for an InterLink service, whose body OSCAR wraps in base64 (`pkg/types/interlink.go`)."""

_WHITE_SPACE = b" \t\n\r"
_ESCAPED = b"\\u00"
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_MOST_REMOVED = 2**20
"""Bytes of an event that choose credentials, at most: none that has more of them is sent without them."""

_BRIEFLY = "the event, encoded as briefly as can be,"

_MAX_DEPTH = 500
"""Deeper JSON goes as base64: the supervisor's Python gives up at 1,000 levels, its own calls included."""


class PayloadError(BridgeError):
    """This event can never be sent to its service: a dead letter."""

    cause: str
    """A short, bounded word for metrics and dead letters."""


class PayloadTooLargeError(PayloadError):
    """The event would be accepted by OSCAR, but its job could not start. Sizes are bytes."""

    cause = "too_large"

    def __init__(self, size: int, limit: int, what: str = "the encoded event") -> None:
        super().__init__(f"{what} has {size} bytes, and a job can be started with {limit} at most")
        self.size = size
        self.limit = limit


def encode(
    event: Event, *, mode: Mode = "auto", trusted: bool = False, max_bytes: int = MAX_EVENT_BYTES
) -> bytes:
    """Give the body to send for `event`: ASCII, at most `max_bytes` long.

    Unless `trusted`, what lets an event choose credentials is removed from JSON objects: `principalId` in
    `Records[].requestParameters` and `storage_provider` (OSCAR `job.go`, decodeEventBytes and
    parseDelegatedStorageProvider). Raises PayloadTooLargeError.
    """
    data = event.data
    if len(data) > max_bytes:
        # Whatever it becomes, it has this at least: to encode megabytes would stop all else for seconds.
        least = len(data.translate(None, _WHITE_SPACE))
        if mode == "auto" and not trusted and _may_lose_members(data):
            least -= _MOST_REMOVED
        if least > max_bytes:
            raise PayloadTooLargeError(least, max_bytes, _BRIEFLY)
    if mode == "base64":
        encoded = _base64(data)
    elif mode == "cloudevent":
        encoded = _re_encode(_cloudevent(event, max_bytes).encode("utf-8"))
    else:
        encoded = _auto(event, trusted, max_bytes)
    if len(encoded) > max_bytes:
        raise PayloadTooLargeError(len(encoded), max_bytes)
    return encoded


def _may_lose_members(data: bytes) -> bool:
    """Tell whether `_without_credentials` may find something in `data`, however it is spelled."""
    return _has(data, b"principalId") or _has(data, b"storage_provider") or _has_escaped_letter(data)


def _has_escaped_letter(data: bytes) -> bool:
    return _has(data, _ESCAPED) and _ESCAPED_LETTER.search(data) is not None


def _has(data: bytes, part: bytes) -> bool:
    """Tell whether `part` is in `data`: `in` would take it for a number first, and make an error of that."""
    return data.find(part) >= 0


def _auto(event: Event, trusted: bool, max_bytes: int) -> bytes:
    data = kept = event.data
    try:
        value = _load(data) if event.value is None else event.value
        if not isinstance(value, dict):
            return _base64(data)
        if not _TELLING_KEYS.isdisjoint(value):
            if not trusted and _may_choose_credentials(data, value):
                kept = _without_credentials(data.decode("utf-8")).encode("utf-8")
                value = _load(kept)
            stored = _follow(value)
            limit = max(max_bytes, MAX_EVENT_BYTES)
            if stored is not None and len(kept) * _LONGEST_FORM > limit:
                _check_stored(stored, limit)
    except _UNFIT:
        return _base64(data)
    return _re_encode(kept)


# --- Base64 -----------------------------------------------------------------------------------------------

_READS_AS_JSON = re.compile(rb"\d+(?:[eE]\+?\d+)?|null|true|Infinity")


def _base64(data: bytes) -> bytes:
    """Give base64 that does not read as JSON: `1234`, `null` and the like get a dot in front.

    The supervisor decodes what is not JSON, and its decoder skips the dot. No data stays no data: an empty
    `EVENT` becomes an empty file.
    """
    encoded = base64.b64encode(data)
    return b"." + encoded if _READS_AS_JSON.fullmatch(encoded) else encoded


# --- Reading JSON -----------------------------------------------------------------------------------------


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_SPACE = " \t\n\r"
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')
_BRACKET = re.compile(r"[\[\]{}]")


def _load(data: bytes) -> Any:
    """Read JSON as `_parse` does. Raises as it does.

    A reader that needs a quarter of the time takes part of what `_parse` takes, and reads the same in it.
    `_parse` has the last word on what that one refuses, such as half a surrogate pair and deep nesting.
    """
    try:
        return from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return _parse(data.decode("utf-8"))


def _parse(text: str) -> Any:
    """Read RFC 8259 JSON as the supervisor will; the last of duplicate keys counts, as in Go and Python.

    Raises ValueError (or RecursionError) for what is not JSON, and for what is but the supervisor's Python
    can't read: integers above 4,300 digits and deep nesting.
    """
    text = text.strip(_SPACE)
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError("more than one value")
    if text.count("[") + text.count("{") > _MAX_DEPTH:
        brackets = _BRACKET.findall(_STRING.sub("", text))
        if max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets)) > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    return value


# --- Re-encoding on the tokens of the text ----------------------------------------------------------------

_UNTOUCHED = bytes(set(range(0x21, 0x7F)) - set(b"\\$*?["))
_SHORT_ESCAPE = re.compile(r'\\(["\\/bfnrt])')
_LONG_ESCAPES = {
    short: f"\\u{ord(char):04x}" for short, char in zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True)
}
# All strings are gone through at once, one a line, and by plain methods where they do: these take a tenth of
# the time of one expression for all of it.
_SAFE = bytes(set(range(0x20, 0x7F)) - set(b"$*?[")) + b"\n"
_UNSAFE = re.compile(r"[^ -#%-)+->@-Z\\-~\n]+")  # the complement of the former
_SPACES = re.compile(r"  +")


def _re_encode(data: bytes) -> bytes:
    """Rewrite valid JSON, an object, so that it comes out of Kubernetes and the shell as the same JSON.

    Inside strings: every short escape as `\\u00XX`; `$`, `*`, `?`, `[`, spaces that splitting words would
    lose, and all but printable ASCII as `\\uXXXX` (RFC 8259, 7). Between tokens: no white space, but one
    space after every `[`. Without it a word such as `{"a":[1,2]}` is a pattern, and becomes `{"a":1}` in a
    working directory with a file of that name; a `[` that ends its word is none. No word is an option of
    echo, as the first begins with `{`; what an expansion gave undergoes no tilde or brace expansion.
    """
    touched = data.translate(None, _UNTOUCHED)
    if not touched:
        return data
    if not touched.strip(b"["):
        pieces = data.split(b"[")
        # Of a string that has one the quotes around it would be in different pieces.
        if all(piece.count(b'"') % 2 == 0 for piece in pieces):
            return b"[ ".join(pieces)
    if not touched.strip(b" ["):
        quoted = data.split(b'"')
        # Two spaces are in a string then, or one is at its begin or its end.
        words = b" ".join([b"", *filter(None, quoted[1::2]), b""])
        if not (_has(words, b"  ") or _has(words, b"[")):
            tokens = b'"'.join(quoted[::2]).replace(b" ", b"").replace(b"[", b"[ ")
            quoted[::2] = tokens.split(b'"')
            return b'"'.join(quoted)
    # No string contains a quote then: every second part is a string.
    parts = _long_escapes(data.decode("utf-8")).split('"')
    structure = "".join('"'.join(parts[::2]).split()).replace("[", "[ ")
    parts[::2] = structure.split('"')
    strings = "\n".join(["", *parts[1::2], ""])
    safe = strings
    if not safe.isascii() or safe.encode("ascii").translate(None, _SAFE):
        safe = _UNSAFE.sub(_escape, safe)
    if "  " in safe:
        safe = _SPACES.sub(_escape, safe)
    safe = safe.replace("\n ", "\n\\u0020").replace(" \n", "\\u0020\n")
    if safe != strings:
        parts[1::2] = safe.split("\n")[1:-1]
    return '"'.join(parts).encode("ascii")


def _long_escapes(text: str) -> str:
    if "\\" not in text:
        return text
    return _SHORT_ESCAPE.sub(lambda found: _LONG_ESCAPES[found[1]], text)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


# --- What chooses credentials -----------------------------------------------------------------------------

_TOKEN = re.compile(r'"[^"]*"|[{}\[\],:]|[^\s"{}\[\],:]+')  # of text without short escapes
_PARTS = {
    ("event", "event"): "event",  # a delegated event: the supervisor reads the inner one again
    ("event", "storage_provider"): "credential",
    ("event", "Records"): "records",
    ("record", "requestParameters"): "parameters",
    ("parameters", "principalId"): "credential",
}


def _may_choose_credentials(data: bytes, value: dict[str, Any]) -> bool:
    """Tell whether `_without_credentials` may find something in `data`, which says `value`.

    S3 names a `principalId` in each record, but elsewhere: whose doing it was, and whose the bucket is. Where
    no letter of a key is escaped, each key in `value` stands in the text at a place of its own; so if the
    text has the name no oftener than `value` has it in those two places, it is nowhere else.
    """
    if _has(data, b"storage_provider") or _has_escaped_letter(data):
        return True
    named = data.count(b"principalId")
    return named > 0 and named > _harmless_principals(value)


def _harmless_principals(value: dict[str, Any]) -> int:
    records = value.get("Records")
    found = 0
    for record in records if isinstance(records, list) else ():
        if isinstance(record, dict):
            found += _has_principal(record.get("userIdentity"))
            stored = record.get("s3")
            bucket = stored.get("bucket") if isinstance(stored, dict) else None
            found += isinstance(bucket, dict) and _has_principal(bucket.get("ownerIdentity"))
    return found


def _has_principal(owner: Any) -> bool:
    return isinstance(owner, dict) and "principalId" in owner


def _without_credentials(text: str) -> str:
    """Take each member that chooses credentials out of valid JSON, however its key is spelled or repeated."""
    tokens = _TOKEN.findall(_long_escapes(text))
    kept: list[str] = []
    around: list[str] = []  # what each open container is: for an object itself, for an array its elements
    what = "event"  # what the next value is
    at = 0
    while at < len(tokens):
        lexeme = tokens[at]
        at += 1
        if lexeme == "{":
            around.append(what)
        elif lexeme == "[":
            what = "record" if what == "records" else ""
            around.append(what)
        elif lexeme in "}]":
            around.pop()
            if kept[-1] == ",":  # the last members were taken out
                kept.pop()
        elif lexeme == ",":
            what = around[-1]
        elif tokens[at] == ":":  # `lexeme` is a key
            what = _PARTS.get((around[-1], json.loads(lexeme)), "") if around[-1] else ""
            if what == "credential":
                at = _after_member(tokens, at)
                continue
        kept.append(lexeme)
    return "".join(kept)


def _after_member(tokens: list[str], at: int) -> int:
    """Give the place of the next member, or of the end of the object."""
    depth = 0
    while depth or tokens[at] not in "},":
        if tokens[at] in "{[":
            depth += 1
        elif tokens[at] in "}]":
            depth -= 1
        at += 1
    return at + 1 if tokens[at] == "," else at


# --- What the supervisor makes of an object ---------------------------------------------------------------

_TELLING_KEYS = frozenset({"httpMethod", "event", "event_type", "Records", "storage_provider"})
_DELEGATED_KEYS = frozenset({"event", "storage_provider"})  # OSCAR, resourcemanager/delegate.go
_UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def _follow(event: Any) -> dict[str, Any] | None:
    """Go the supervisor's way through an event, and raise one of _UNFIT where it would fail.

    The same fields are read in the same order (`faassupervisor/events/__init__.py`, parse_event), so that
    the same shapes raise. Beyond that, an event is unfit where the supervisor would hand the script something
    else than the event and nobody can have meant it: `httpMethod` without a `body`; an `event` that is text,
    unless `storage_provider` beside it says that OSCAR delegated it; an `event` with other keys beside it,
    which would be lost; text taken for base64 that is not quite base64. Gives the storage event, which the
    supervisor writes into its environment, or None.
    """
    if not isinstance(event, dict):
        raise TypeError("the supervisor takes objects")
    if "httpMethod" in event:
        _first_record(event)
        for name, value in (event.get("queryStringParameters") or {}).items():
            _put_in_environment(f"CONT_VAR_{name}", value)
        return _follow_enclosed(event["body"] or "")
    if "event" in event and "subscription" in event:
        _follow_dcache(event["event"] or event)
        return None
    if "event_type" in event:
        if not isinstance(event["payload"], dict):
            raise TypeError("the supervisor looks for a scope in the payload")
        if "scope" in event["payload"]:
            rucio = event.get("event") or event
            _first_record(rucio)
            _read(rucio["payload"], "scope", "name")
            return None
    if "event" in event:
        if isinstance(event["event"], str) and "storage_provider" not in event:
            raise TypeError("an `event` that is text is only a word of its producer")
        if not event.keys() <= _DELEGATED_KEYS:
            raise TypeError("the supervisor reads the inner event alone: what stands beside it would be lost")
        return _follow_enclosed(event["event"])
    return _follow_records(event)


def _follow_enclosed(event: Any) -> dict[str, Any] | None:
    if isinstance(event, str):
        try:
            event = _parse(event)
        except ValueError:
            base64.b64decode(event, validate=True)  # what the script will get, if this does not raise
            return None
    return _follow(event)


def _follow_dcache(event: Any) -> None:
    _first_record(event)
    if not isinstance(event["name"], str):
        raise TypeError("the supervisor makes a path of the name")


def _follow_records(event: dict[str, Any]) -> dict[str, Any] | None:
    if not event.get("Records"):
        return None
    record = event["Records"][0]
    if "eventSource" not in record:
        return None
    origin = record["eventSource"]
    if origin in ("aws:s3", "minio:s3"):
        _read(record["s3"]["bucket"], "arn", "name")
        key, time = unquote_plus(record["s3"]["object"]["key"]), record["eventTime"]
    elif origin == "OneTrigger":
        _read(record, "objectKey")
        key, time = event["Key"], record["eventTime"]
    elif origin == "rucio":
        _read(event["payload"], "scope")
        key, time = event["payload"]["name"], None
    else:
        return None
    _put_in_environment("STORAGE_OBJECT_KEY", key)
    _put_in_environment("EVENT_TIME", time)
    return event


def _first_record(event: Any) -> None:
    """Every kind of event reads `Records[0]`, if `Records` is there and not empty (`events/unknown.py`)."""
    if isinstance(event, dict) and event.get("Records"):
        _read(event["Records"], 0)


def _read(value: Any, *keys: str | int) -> None:
    for key in keys:
        value[key]


def _put_in_environment(name: str, value: Any) -> None:
    if not value:
        return  # the supervisor skips it
    if not isinstance(value, str):
        raise TypeError("the environment takes text")
    if "=" in name or "\0" in name + value:
        raise ValueError("the environment takes neither NUL nor a name with =")
    (name + value).encode("utf-8", "surrogateescape")


_LONGEST_FORM = 6
"""A byte of JSON becomes so many at most where `json.dumps` writes it anew: DEL becomes six characters, a
letter of two bytes likewise, `9e15` has eighteen, and a comma or colon gets a space."""


def _check_stored(event: dict[str, Any], limit: int) -> None:
    """Refuse a storage event whose form in the supervisor's own environment keeps the script from starting.

    It sets `EVENT` anew to `json.dumps(event)` before it starts the script. That form has a space after every
    comma and colon and other numbers, so it can be longer than what it came as.
    """
    size = len(json.dumps(event))
    if size > limit:
        raise PayloadTooLargeError(size, limit, "the storage event, as faas-supervisor writes it,")


# --- CloudEvents ------------------------------------------------------------------------------------------

_EXTENSION_NAME = re.compile(r"[a-z0-9]+")
_TAKEN_NAMES = frozenset(
    {
        *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"),
        "event",  # the supervisor would take the CloudEvent for a delegated event
    }
)


def _cloudevent(event: Event, max_bytes: int) -> str:
    """Give the CloudEvent in its structured JSON form (CloudEvents 1.0, JSON Event Format).

    Attributes whose names CloudEvents allows become extensions. `data` is JSON exactly as it came, where it
    is JSON; `data_base64` otherwise; neither where there is none. Nothing in it can choose credentials:
    OSCAR looks for that at the top, under names that CloudEvents does not allow. Raises PayloadTooLargeError
    of one that is longer than `max_bytes` whatever is still done to it.
    """
    context = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    if event.subject:
        context["subject"] = event.subject
    if event.time is not None:
        context["time"] = event.time.isoformat()
    context |= {
        name: value
        for name, value in event.attributes.items()
        if name not in _TAKEN_NAMES and _EXTENSION_NAME.fullmatch(name)
    }
    if event.size > max_bytes:  # as with the data alone: megabytes of attributes take as long to encode
        least = sum(map(len, context.values())) + len(event.data.translate(None, _WHITE_SPACE))
        if least > max_bytes:
            raise PayloadTooLargeError(least, max_bytes, _BRIEFLY)
    if not event.data:
        return json.dumps(context)
    try:
        text = event.data.decode("utf-8")
        _parse(text)
    except (ValueError, RecursionError):
        context["datacontenttype"] = "application/octet-stream"
        context["data_base64"] = base64.b64encode(event.data).decode("ascii")
        return json.dumps(context)
    context["datacontenttype"] = "application/json"
    return f'{json.dumps(context)[:-1]},"data":{text}}}'
