"""What leaves as a payload, and what comes out of Kubernetes, a real shell and the supervisor's reading."""

from __future__ import annotations

import base64
import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from faassupervisor.events import parse_event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.destinations.oscar import payload
from bridge.destinations.oscar.payload import (
    MAX_EVENT_BYTES,
    MAX_INTERLINK_BYTES,
    PayloadError,
    PayloadTooLargeError,
    encode,
)
from tests.destinations.in_pod import SECRET, SHELLS, arrives, body, event, in_pod, supervisor

real_shells = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
awkward_text = st.text(st.sampled_from("a \\\"'$()*?[]{}~`!#&;|<>-n\n\t\r\0\x1b\x7fé€😀/")) | st.text()
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | awkward_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(awkward_text, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(awkward_text, values, max_size=5)


@pytest.mark.parametrize("shell", SHELLS)
@given(value=objects, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
@real_shells
def test_a_json_object_comes_out_of_the_shell_as_the_same_value(
    shell: str, tmp_path: Path, value: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    arrived = arrives(data, shell, tmp_path, trusted=True)
    # What the supervisor would fail on, such as `{"Records": true}`, goes as base64: as the bytes it was.
    assert (json.loads(arrived) if isinstance(arrived, bytes) else arrived) == value


@pytest.mark.parametrize("shell", SHELLS)
@given(data=st.binary())
@real_shells
def test_bytes_come_out_of_the_shell_as_the_same_bytes(shell: str, tmp_path: Path, data: bytes) -> None:
    arrived = arrives(data, shell, tmp_path)
    # hypothesis finds JSON objects too, such as `{}`.
    assert arrived == (data if isinstance(arrived, bytes) else json.loads(data))


@pytest.mark.parametrize("shell", SHELLS)
@given(value=values.filter(lambda value: not isinstance(value, dict)))
@real_shells
def test_json_that_is_no_object_comes_out_as_the_same_bytes(shell: str, tmp_path: Path, value: Any) -> None:
    data = json.dumps(value).encode()
    assert arrives(data, shell, tmp_path) == data


@pytest.mark.parametrize("shell", SHELLS)
def test_every_ascii_character_survives_anywhere_in_a_string(shell: str, tmp_path: Path) -> None:
    for ascii_only in (True, False):
        value = {
            f"{position} {code}": text
            for code in range(128)
            for position, text in {
                "alone": chr(code),
                "first": chr(code) + "x",
                "last": "x" + chr(code),
                "inside": "x" + chr(code) + "x",
                "between spaces": f"x {chr(code)} x",
                "before a letter": f"\\{chr(code)}n{chr(code)}u0041",
                "run": chr(code) * 3,
            }.items()
        } | {chr(code) * 2: code for code in range(128)}
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert arrives(data, shell, tmp_path) == value


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "text",
    [
        "two  spaces and   three",
        " at both ends ",
        "* ? [a-z] [ ] ** /*",
        "line\nline\r\n\ttab",
        'say "hello"',
        r"C:\new\table \\ \n \u0041",
        "$(SECRET) $$(SECRET) $$$(SECRET) ${SECRET} $SECRET `id`",
        "$$ $",
        "-n -e -E",
        "~ ~root {a,b} !! # ; & | > <",
        "naïve € 日本語 😀 \u2028 \u00a0",
        "\ud800 alone \udfff",
        "/dev/* /etc/pass?d",
    ],
)
def test_what_a_shell_or_kubernetes_would_read_stays_text(shell: str, text: str, tmp_path: Path) -> None:
    value = {"text": text, text: [text, {"list": [[text]]}]}
    data = json.dumps(value).encode()
    out = in_pod(body(data), shell, tmp_path)
    assert supervisor(out) == value
    assert SECRET.encode() not in out
    assert arrives(text.encode("utf-8", "surrogatepass"), shell, tmp_path) == text.encode(
        "utf-8", "surrogatepass"
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_json_array_is_no_pattern_for_file_names(shell: str, tmp_path: Path) -> None:
    raw = '{"a":[1,2]}'
    assert in_pod(raw, shell, tmp_path) == b'{"a":1}\n'  # the danger is real
    assert in_pod(body(raw), shell, tmp_path) == b'{"a":[ 1,2]}\n'
    assert body('{"a":[[],[[1]]],"b":[]}') == '{"a":[ [ ],[ [ 1]]],"b":[ ]}'


def test_numbers_the_order_of_keys_and_duplicate_keys_stay_as_written() -> None:
    text = '{ "z" : 1e400 , "a":1.10,\r\n\t"z": -0.0E+07, "a": {"n": 123456789012345678901234567890}}'
    assert body(text) == '{"z":1e400,"a":1.10,"z":-0.0E+07,"a":{"n":123456789012345678901234567890}}'


def test_escapes_are_written_long_and_long_ones_stay() -> None:
    assert body(r'{"\"\\\/\b\f\n\r\t":"\\n\u0041\uD83D\uDE00\ud800"}') == (
        r'{"\u0022\u005c\u002f\u0008\u000c\u000a\u000d\u0009":"\u005cn\u0041\uD83D\uDE00\ud800"}'
    )
    assert body('{"a":"é😀\x7f$*?["}') == r'{"a":"\u00e9\ud83d\ude00\u007f\u0024\u002a\u003f\u005b"}'
    assert body('{" a  b c ":""}') == r'{"\u0020a\u0020\u0020b c\u0020":""}'


def test_a_clean_text_goes_as_it_is() -> None:
    text = '{"id":17,"path":"/data/in/a.nc","mask":{"x":true}}'
    assert body(text) == text
    assert body("{}") == "{}"
    assert body("{ }\n") == "{}"


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":"\n"}',
        b'{"a":"\\x41"}',
        b'{"a":"\\u12"}',
        b'{"a":1} {"b":2}',
        b'{"a":\xa01}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        b"   ",
        b"[1,2]",
        b"12",
        b'"text"',
        b"true",
        b"null",
    ],
)
def test_what_is_no_json_object_goes_as_base64(data: bytes) -> None:
    encoded = body(data)
    assert encoded == base64.b64encode(data).decode()
    assert supervisor(encoded.encode()) == data


@pytest.mark.parametrize(
    "text", ["1234", "null", "true", "0000", "1e10", "12E3", "1E+5", "Infinity", "1" * 8000]
)
def test_base64_that_reads_as_json_gets_a_dot_in_front(text: str) -> None:
    data = base64.b64decode(text)
    for mode in ("auto", "base64"):
        encoded = body(data, mode=mode)
        assert encoded == "." + text
        assert supervisor(encoded.encode()) == data


@given(st.from_regex(r"([0-9eE+]{4}|null|true|Infinity|NaN0){1,3}", fullmatch=True))
def test_base64_never_reads_as_json(text: str) -> None:
    data = base64.b64decode(text)
    assert supervisor(body(data, mode="base64").encode()) == data


def test_no_data_stays_no_data() -> None:
    assert body(b"") == ""
    assert body(b"", mode="base64") == ""


def test_mode_base64_encodes_objects_too() -> None:
    assert body(b'{"a": 1}', mode="base64") == "eyJhIjogMX0="


def test_json_the_supervisor_cannot_read_goes_as_base64() -> None:
    for data in (
        b'{"a":' + b"9" * 4301 + b"}",
        b'{"a":' * 501 + b"1" + b"}" * 501,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ):
        assert supervisor(encode(event(data), max_bytes=10**6)) == data
    flat = b'{"a":[' + b"{}," * 600 + b'[],"[[[[]]]]"]}'
    assert body(flat).startswith("{")
    assert body(b'{"a":' * 500 + b"1" + b"}" * 500).startswith("{")


S3_RECORD: dict[str, Any] = {
    "eventSource": "aws:s3",
    "eventTime": "2026-01-01T00:00:00Z",
    "requestParameters": {"sourceIPAddress": "10.0.0.1"},
    "s3": {"bucket": {"arn": "arn:aws:s3:::in", "name": "in"}, "object": {"key": "a%2Fb.nc"}},
}


@pytest.mark.parametrize(
    "value",
    [
        {"Records": [S3_RECORD]},
        {"Records": [S3_RECORD | {"eventSource": "minio:s3"}], "Key": "in/a"},
        {"Records": [{"eventSource": "OneTrigger", "objectKey": "a", "eventTime": "t"}], "Key": "/in/a"},
        {"Records": [{"eventSource": "rucio"}], "payload": {"scope": "s", "name": "n"}},
        {"Records": []},
        {"Records": [{"eventSource": "mine", "s3": 1}]},
        {"event": {"name": "a.nc", "mask": ["IN_CREATE"]}, "subscription": "https://dcache"},
        {"event_type": "close", "payload": {"scope": "s", "name": "n"}},
        {"event_type": "close", "payload": {}},
        {"event": {"Records": [S3_RECORD]}},
        {"event": {"anything": 1}},
        {"httpMethod": "POST", "body": '{"a": 1}', "queryStringParameters": {"q": "v", "none": None}},
        {"httpMethod": "POST", "body": "AAEC", "headers": {}},
        {"httpMethod": "GET", "body": None},
    ],
)
def test_an_object_the_supervisor_takes_goes_as_json(value: dict[str, Any]) -> None:
    assert json.loads(body(json.dumps(value))) == value


@pytest.mark.parametrize(
    "value",
    [
        {"event_type": "close"},
        {"event_type": "close", "payload": "text"},
        {"event_type": "close", "payload": {"scope": "s"}},
        {"event_type": "close", "payload": {"scope": "s", "name": "n"}, "event": {"name": "n"}},
        {"event": None},
        {"event": 1},
        {"event": [1]},
        {"event": "created", "id": 1},
        {"event": "uploads1", "id": 1},
        {"event": {"event_type": "close"}},
        {"time": 1, "host": "edge-1", "event": {"file": "a.nc"}},
        {"event": {"Records": [S3_RECORD]}, "id": 1},
        {"event": {"event": {"file": "a.nc"}, "id": 1}},
        {"event": {}, "Records": [S3_RECORD]},
        {"event": {"file": "a.nc"}, "event_type": "upload", "payload": {}},
        {"httpMethod": "POST", "body": '{"event": {"file": "a.nc"}, "id": 1}', "headers": {}},
        {"event": {"mask": ["IN_CREATE"]}, "subscription": "https://dcache"},
        {"event": {"name": 1}, "subscription": "https://dcache"},
        {"event": "text", "subscription": "https://dcache"},
        {"httpMethod": "GET", "path": "/"},
        {"httpMethod": "GET", "body": "plain text"},
        {"httpMethod": "GET", "body": "[1]"},
        {"httpMethod": "GET", "body": 1},
        {"httpMethod": "GET", "body": "", "queryStringParameters": ["q"]},
        {"httpMethod": "GET", "body": "", "queryStringParameters": {"q": 1}},
        {"httpMethod": "GET", "body": "", "queryStringParameters": {"q=": "v"}},
        {"Records": 1},
        {"Records": {"eventSource": "aws:s3"}},
        {"Records": [None]},
        {"Records": ["the eventSource"]},
        {"Records": [{"eventSource": "aws:s3"}]},
        {"Records": [S3_RECORD | {"eventTime": 17}]},
        {"Records": [S3_RECORD | {"s3": S3_RECORD["s3"] | {"object": {"key": 1}}}]},
        {"Records": [S3_RECORD | {"s3": S3_RECORD["s3"] | {"object": {"key": "%00"}}}]},
        {"Records": [S3_RECORD | {"s3": S3_RECORD["s3"] | {"object": {"key": "\ud800"}}}]},
        {"Records": [{"eventSource": "OneTrigger", "objectKey": "a", "eventTime": "t"}]},
        {"Records": [{"eventSource": "rucio"}]},
    ],
)
def test_an_object_the_supervisor_fails_on_or_loses_goes_as_base64(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    assert supervisor(body(data).encode()) == data


def test_what_stands_beside_an_event_reaches_the_script(tmp_path: Path) -> None:
    data = b'{"time":1,"host":"edge-1","event":{"file":"a.nc"}}'
    assert parse_event(data.decode()).event == {"file": "a.nc"}  # the loss is real
    saved = parse_event(body(data)).save_event(str(tmp_path))
    assert Path(saved).read_bytes() == data


def test_what_stands_beside_a_delegated_event_but_its_provider_is_no_reason_to_wrap_it() -> None:
    value = {"event": {"file": "a.nc"}, "storage_provider": "minio.default"}
    assert json.loads(body(json.dumps(value), trusted=True)) == value
    assert json.loads(body(json.dumps(value))) == {"event": {"file": "a.nc"}}


@pytest.mark.parametrize("mode", ["auto", "base64", "cloudevent"])
@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"event":' * 100_000, b'{"Records":' + b"[" * 100_000])
def test_endless_brackets_never_raise(mode: Any, data: bytes) -> None:
    for trusted in (True, False):
        encoded = encode(event(data), mode=mode, trusted=trusted, max_bytes=10**7).decode("ascii")
        if mode == "cloudevent":
            encoded = json.loads(encoded)["data_base64"]
        assert base64.b64decode(encoded) == data


def test_a_delegated_event_in_text_goes_as_json_from_a_trusted_source_only() -> None:
    for inner in ('{"a": 1}', "aGVsbG8="):
        data = json.dumps({"storage_provider": "minio.default", "event": inner}).encode()
        assert json.loads(body(data, trusted=True)) == json.loads(data)
        assert supervisor(body(data).encode()) == data


def exactly(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


def test_the_limit_counts_the_encoded_value_and_the_error_gives_both_sizes() -> None:
    assert len(encode(event(exactly(131_065)))) == MAX_EVENT_BYTES == 131_065
    with pytest.raises(PayloadTooLargeError, match=r"131066 bytes.* 131065 at most") as raised:
        encode(event(exactly(131_066)))
    assert (raised.value.size, raised.value.limit, raised.value.cause) == (131_066, 131_065, "too_large")
    assert isinstance(raised.value, PayloadError)
    with pytest.raises(PayloadTooLargeError, match="68 bytes"):
        encode(event(b'{"a":"' + b"$" * 10 + b'"}'), max_bytes=67)
    assert len(encode(event(exactly(131_065) + b" " * 1000))) == 131_065
    assert len(encode(event(bytes(98_298)))) == 131_064
    with pytest.raises(PayloadTooLargeError, match=r"131068 bytes"):
        encode(event(bytes(98_299)))
    with pytest.raises(PayloadTooLargeError, match=r"98299 bytes.* 98298 at most"):
        encode(event(exactly(98_299)), max_bytes=MAX_INTERLINK_BYTES)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_linux_starts_a_process_with_the_longest_value_and_not_with_one_byte_more() -> None:
    command: Sequence[str] = ["/bin/sh", "-c", "exit 0"]
    value = encode(event(exactly(131_065))).decode()
    subprocess.run(command, env={"EVENT": value}, check=True)
    with pytest.raises(OSError) as raised:
        subprocess.run(command, env={"EVENT": value + "x"}, check=True)
    assert raised.value.errno == errno.E2BIG


def test_a_storage_event_must_fit_in_the_form_the_supervisor_gives_it_too() -> None:
    def storage(numbers: int) -> bytes:
        return json.dumps({"Records": [S3_RECORD], "x": [1] * numbers}, separators=(",", ":")).encode()

    def written(data: bytes) -> int:  # by the supervisor, into EVENT
        return len(json.dumps(json.loads(data)))

    longest = 1 + (MAX_EVENT_BYTES - written(storage(1))) // len(", 1")
    assert len(encode(event(storage(longest)))) < 90_000
    with pytest.raises(PayloadTooLargeError, match="as faas-supervisor writes it") as raised:
        encode(event(storage(longest + 1)))
    assert raised.value.size == written(storage(longest + 1))
    with pytest.raises(PayloadTooLargeError, match="as faas-supervisor writes it"):
        encode(event(b'{"event":' + storage(longest + 1) + b"}"))
    anything = json.dumps({"x": [1] * 60_000}, separators=(",", ":")).encode()
    assert written(anything) > MAX_EVENT_BYTES > len(encode(event(anything)))


def test_cloudevent_mode_keeps_json_data_as_written() -> None:
    happened = Event(
        id="17",
        source="uploads",
        type="kafka.record",
        subject="in/a b.nc",
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        attributes={"partition": "0", "event": "created", "Content-Type": "x", "id": "no", "note": "a$b"},
        data=b'{ "n": 1.10, "text": "a\\n$(SECRET)", "Records": [1] }',
    )
    encoded = encode(happened, mode="cloudevent")
    assert encoded.endswith(rb'"data":{"n":1.10,"text":"a\u000a\u0024(SECRET)","Records":[ 1]}}')
    assert json.loads(encoded) == {
        "specversion": "1.0",
        "id": "17",
        "source": "uploads",
        "type": "kafka.record",
        "subject": "in/a b.nc",
        "time": "2026-01-02T03:04:05+00:00",
        "partition": "0",
        "note": "a$b",
        "datacontenttype": "application/json",
        "data": {"n": 1.10, "text": "a\n$(SECRET)", "Records": [1]},
    }


@pytest.mark.parametrize("data", [b"\xff\x00", b"{", b"NaN", b"text", b"[" * 501 + b"]" * 501])
def test_cloudevent_mode_carries_other_data_as_base64(data: bytes) -> None:
    value = json.loads(body(data, mode="cloudevent"))
    assert base64.b64decode(value["data_base64"]) == data
    assert "data" not in value


@pytest.mark.parametrize("data", [b"[1, 2]", b"17", b'"text"', b"null", b"[" * 500 + b"]" * 500])
def test_cloudevent_mode_takes_any_json(data: bytes) -> None:
    assert json.loads(body(data, mode="cloudevent"))["data"] == json.loads(data)


def test_a_cloudevent_without_data_has_no_data_member() -> None:
    assert json.loads(body(b"", mode="cloudevent")) == {
        "specversion": "1.0",
        "id": "uploads/0/17",
        "source": "uploads",
        "type": "kafka.record",
    }


@pytest.mark.parametrize("shell", SHELLS)
@given(data=st.binary() | values.map(lambda value: json.dumps(value).encode()), name=awkward_text)
@real_shells
def test_a_cloudevent_comes_out_of_the_shell_whole(
    shell: str, tmp_path: Path, data: bytes, name: str
) -> None:
    encoded = encode(event(data, subject=name, attributes={"name": name}), mode="cloudevent").decode()
    value = supervisor(in_pod(encoded, shell, tmp_path))
    assert isinstance(value, dict)
    assert value["name"] == name
    if "data" in value:
        assert value["data"] == json.loads(data)
    else:
        assert base64.b64decode(value.get("data_base64", "")) == data


@pytest.mark.parametrize("mode", ["auto", "base64", "cloudevent"])
@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"a": [{"k": "text *? [x] é\n"}] * 20_000}).encode(),
        b'{"Records":[' + b'{"requestParameters":{"principalId":"p"}},' * 40_000 + b"{}]}",
        b"\xff" * 200_000,
    ],
    ids=["escapes", "credentials", "binary"],
)
def test_what_is_far_too_large_is_refused_without_being_encoded(
    data: bytes, mode: payload.Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To encode a megabyte takes a tenth of a second and more, in which nothing else goes on."""

    def never(*_: object) -> NoReturn:
        raise AssertionError("it is encoded")

    for part in ("_parse", "_re_encode", "_base64", "_without_credentials"):
        monkeypatch.setattr(payload, part, never)
    with pytest.raises(PayloadTooLargeError) as refused:
        encode(Event(id="1", source="s", type="t", data=data), mode=mode)
    assert MAX_EVENT_BYTES < refused.value.size <= len(data)


@pytest.mark.parametrize("data", [b"", b'{"a": 1}', b"\xff" * 40_000], ids=["none", "json", "binary"])
def test_attributes_that_are_far_too_large_are_refused_without_being_encoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError("it is encoded")

    large = Event(id="1", source="s", type="t", data=data, attributes={"key": "é" * 1_000_000})
    for part in ("_parse", "_re_encode"):
        monkeypatch.setattr(payload, part, never)
    with pytest.raises(
        PayloadTooLargeError, match=r"briefly.* has 10\d{5} bytes.* 131065 at most"
    ) as refused:
        encode(large, mode="cloudevent")
    monkeypatch.undo()
    with pytest.raises(PayloadTooLargeError) as encoded:
        encode(large, mode="cloudevent", max_bytes=refused.value.size)
    assert encoded.value.size > refused.value.size, "it is no more than it has at least"


def test_attributes_that_are_not_sent_make_no_event_too_large() -> None:
    others = {"Not-Allowed": "x" * 1_000_000, "event": "y" * 1_000_000}
    large = Event(id="1", source="s", type="t", data=b'{"a":1}', attributes={**others, "key": "k"})
    value = json.loads(encode(large, mode="cloudevent"))
    assert (value["key"], value["data"]) == ("k", {"a": 1})
    assert not value.keys() & others.keys()


def test_white_space_and_what_chooses_credentials_make_no_event_too_large() -> None:
    spaced = b"{" + b" \n" * 200_000 + b'"a":1}'
    assert encode(Event(id="1", source="s", type="t", data=spaced)) == b'{"a":1}'
    for key in (b"storage_provider", rb"storage\u005fprovider"):
        chosen = b'{"a":1,"' + key + b'":"' + b"x" * 200_000 + b'"}'
        assert encode(Event(id="1", source="s", type="t", data=chosen)) == b'{"a":1}'
