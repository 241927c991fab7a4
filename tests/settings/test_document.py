"""YAML with places, by the core schema of YAML 1.2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import ConfigurationError, Mistake
from bridge.settings.document import parse, read
from bridge.settings.tree import dotted, hide, is_secret


def plain(text: str) -> Any:
    mistakes: list[Mistake] = []
    value = parse(f"x: {text}", "f.yaml", mistakes).plain()
    assert not mistakes
    return value["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("yes", "yes"), ("no", "no"), ("off", "off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("10:30", "10:30"), ("1:2:3", "1:2:3"), ("010", 10), ("0o10", 8), ("0x1F", 31), ("1_000", "1_000"),
        ("+12", 12), ("-3", -3), ("1.50", 1.5), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0),
        ("-.inf", -math.inf), (".INF", math.inf),
        ("2026-01-31", "2026-01-31"), ('"12"', "12"), ("'true'", "true"), ("=", "="), ("!!str 12", "12"),
        ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("10/s", "10/s"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_not_a_number_is_one() -> None:
    assert math.isnan(plain(".nan"))


def test_every_value_and_key_knows_its_place() -> None:
    root = parse("a:\n  b: [1, {c: x}]\n", "f.yaml", [])
    places = {dotted(loc): str(value.place) for loc, value in root.walk()}
    assert places == {
        "": "f.yaml:1:1",
        "a": "f.yaml:1:1",
        "a.b": "f.yaml:2:6",
        "a.b[0]": "f.yaml:2:7",
        "a.b[1]": "f.yaml:2:10",
        "a.b[1].c": "f.yaml:2:14",
    }
    inner = root.child("a")
    assert inner is not None
    assert str(inner.key_places["b"]) == "f.yaml:2:3"


def test_columns_count_characters() -> None:
    root = parse("{é: '𝄞', x: 1}", "f.yaml", [])
    assert str(root.key_places["x"]) == "f.yaml:1:10"


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse("{1: a, true: b, on: c, null: d}", "f.yaml", []).plain() == {
        "1": "a",
        "true": "b",
        "on": "c",
        "null": "d",
    }


def test_an_alias_repeats_its_anchor() -> None:
    assert parse("{a: &x {n: 1}, b: *x}", "f.yaml", []).plain() == {"a": {"n": 1}, "b": {"n": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 8)}]\n" for n in "bcdefghij"),
        "a: " + "[" * 900 + "]" * 900,
        "a: " + "[" * 100_000,
    ],
)
def test_what_grows_without_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^f\.yaml:\d+:\d+: "):
        parse(text, "f.yaml", [])


def test_a_number_of_five_thousand_digits_is_a_mistake() -> None:
    mistakes: list[Mistake] = []
    parse("x: " + "1" * 5000, "f.yaml", mistakes)
    assert [str(mistake) for mistake in mistakes] == ["f.yaml:1:4: x: the number is too long"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "can't read the configuration file: No such file or directory"),
        (lambda path: path.mkdir(), "can't read the configuration file: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "bridge.yaml"
    make(path)
    with pytest.raises(ConfigurationError) as raised:
        read(path, [])
    assert str(raised.value) == f"{path}: {message}"


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    root = read(path, [])
    assert root.plain() == {"a": 1, "b": 2}
    assert str(root.key_places["b"]) == f"{path}:2:1"


@pytest.mark.parametrize(
    ("loc", "secret"),
    [
        (("clusters", "a", "auth", "password"), True),
        (("x", "client_secret"), True),
        (("x", "refresh_token"), True),
        (("x", "key_password"), True),
        (("x", "password", "value", 0), True),
        (("x", "password_file"), False),
        (("x", "token_endpoint"), False),
        (("x", "username"), False),
    ],
)
def test_secrets_are_known_by_their_keys(loc: tuple[str | int, ...], secret: bool) -> None:
    assert is_secret(loc) is secret


def test_a_short_secret_is_hidden_only_where_it_is_a_word() -> None:
    assert hide("a bad value: 'a'", "a", "[x]") == "[x] bad value: '[x]'"
    assert hide("prefix-hunter2-suffix", "hunter2", "[x]") == "prefix-[x]-suffix"


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_is_a_tree_or_a_configuration_error(text: str) -> None:
    try:
        parse(text, "f.yaml", [])
    except ConfigurationError:
        return


@given(st.text(alphabet="ab:-[]{}?*&!|>'\"%@`#, \n\t~0.<$", max_size=40))
def test_any_punctuation_is_a_tree_or_a_configuration_error(text: str) -> None:
    try:
        parse(text, "f.yaml", [])
    except ConfigurationError:
        return
