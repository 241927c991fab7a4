"""What could choose credentials at OSCAR does not get through from a source that is not trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.destinations.in_pod import body, supervisor


def granted(value: Any) -> list[Any]:
    """What OSCAR, or the supervisor in a delegated event, would take credentials by."""
    if not isinstance(value, dict):
        return []
    records = value.get("Records")
    parameters = [
        record["requestParameters"]
        for record in (records if isinstance(records, list) else [])
        if isinstance(record, dict) and isinstance(record.get("requestParameters"), dict)
    ]
    return [
        *(found["principalId"] for found in parameters if "principalId" in found),
        *([value["storage_provider"]] if "storage_provider" in value else []),
        *granted(value.get("event")),
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"storage_provider":"minio.x"}', "{}"),
        ('{"storage_provider": {"a":[1,{"b":","}]}, "a":1}', '{"a":1}'),
        ('{"a":1,"storage_provider":"x","storage_provider":"y"}', '{"a":1}'),
        (r'{"a":1,"stor\u0061ge_provider":"x","b":2}', '{"a":1,"b":2}'),
        (
            '{"a":{"storage_provider":"x","principalId":"x"}}',
            '{"a":{"storage_provider":"x","principalId":"x"}}',
        ),
        (
            r'{"Records":[{"requestParameters":{"princip\u0061lId":"root","sourceIPAddress":"i"}}]}',
            '{"Records":[ {"requestParameters":{"sourceIPAddress":"i"}}]}',
        ),
        (
            '{"Records":[{},{"requestParameters":{"a":1,"principalId":"x"},"other":{"principalId":"u"}}]}',
            '{"Records":[ {},{"requestParameters":{"a":1},"other":{"principalId":"u"}}]}',
        ),
        (
            r'{"Records":[{"requestParameters":{"principalId":"a"}}],"\u0052ecords":[{"x":[1,2]}]}',
            r'{"Records":[ {"requestParameters":{}}],"\u0052ecords":[ {"x":[ 1,2]}]}',
        ),
        (
            r'{"Records":[{"requestParameters":{},"requestParameters":{"principalId":"c","\"":"{"}}]}',
            r'{"Records":[ {"requestParameters":{},"requestParameters":{"\u0022":"{"}}]}',
        ),
        (
            '{"event":{"event":{"Records":[{"requestParameters":{"principalId":"a"}}]},"storage_provider":"x"}}',
            '{"event":{"event":{"Records":[ {"requestParameters":{}}]}}}',
        ),
        (
            '{"PrincipalId":1,"Storage_provider":2,"Records":[]}',
            '{"PrincipalId":1,"Storage_provider":2,"Records":[ ]}',
        ),
    ],
)
def test_what_chooses_credentials_is_removed_unless_the_source_is_trusted(text: str, kept: str) -> None:
    assert body(text) == kept
    assert json.loads(body(text, trusted=True)) == json.loads(text)


def spelled(draw: st.DrawFn, value: Any) -> str:
    """Write JSON with keys in any spelling, members repeated, and white space."""
    if isinstance(value, list):
        return "[" + " ,".join(spelled(draw, item) for item in value) + "]"
    if not isinstance(value, dict):
        return json.dumps(value)
    members = []
    for key, member in value.items():
        for _ in range(draw(st.integers(1, 2))):
            at = draw(st.integers(0, len(key)))
            name = json.dumps(key[:at])[1:-1] + "".join(f"\\u{ord(char):04X}" for char in key[at : at + 1])
            members.append(f'"{name}{key[at + 1 :]}"\n: {spelled(draw, member)}')
    return "{ " + " , ".join(draw(st.permutations(members))) + "}"


@st.composite
def credential_events(draw: st.DrawFn) -> str:
    parameters = st.fixed_dictionaries(
        {}, optional={"principalId": st.just("root") | st.just({"a": ["]"]}), "sourceIPAddress": st.just("i")}
    )
    record = st.fixed_dictionaries(
        {}, optional={"requestParameters": parameters | st.just([1]), "principalId": st.just("kept")}
    )
    levels: st.SearchStrategy[Any] = st.just({"plain": "}"})
    for _ in range(3):
        levels = st.fixed_dictionaries(
            {},
            optional={
                "storage_provider": st.just("minio.x") | st.just({"x": [1]}),
                "Records": st.lists(record, max_size=3),
                "event": levels,
                "other": st.just([{"storage_provider": 1}]),
            },
        )
    return spelled(draw, draw(levels))


@given(text=credential_events())
def test_no_spelling_of_a_key_brings_credentials_through(text: str) -> None:
    encoded = body(text)
    if encoded.startswith("{"):
        members: list[Any] = []  # of all objects, duplicates among them

        def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            members.extend(member for _, member in pairs)
            return dict(pairs)

        assert granted(json.loads(encoded, object_pairs_hook=remember)) == []
        assert "root" not in members
        assert "minio.x" not in members
    else:
        assert supervisor(encoded.encode()) == text.encode()
