"""Durations, sizes, rates, files and secrets as a person writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from bridge.again import Order as Again
from bridge.commands import Command
from bridge.control import Acknowledgement
from bridge.control import Order as Change
from bridge.core.errors import CredentialError
from bridge.values import (
    Bytes,
    Directory,
    Document,
    Model,
    Rate,
    ReadableFile,
    Seconds,
    mistakes,
    read_secret,
    secret,
)

seconds: Callable[[object], float] = TypeAdapter(Seconds).validate_python
size: Callable[[object], int] = TypeAdapter(Bytes).validate_python
rate: Callable[[object], float] = TypeAdapter(Rate).validate_python
readable: Callable[[object], Path] = TypeAdapter(ReadableFile).validate_python
directory: Callable[[object], Path] = TypeAdapter(Directory).validate_python


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (30, 30.0),
        (0.25, 0.25),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1.5 m", 90.0),
        (" 24h ", 86_400.0),
        ("90d", 7_776_000.0),
        ("25", 25.0),  # from the environment
        ("2.5", 2.5),
    ],
)
def test_a_duration_is_seconds(written: object, meant: float) -> None:
    assert seconds(written) == pytest.approx(meant)


NO_DURATIONS: list[object] = [
    *("", "s", "30 sec", "-30s", "30S", "1h30m", "1e3s", "½s", "nan", "inf", "0s", "9" * 400),
    *(None, True, [30], 0, -1, float("inf"), float("nan")),
]


@pytest.mark.parametrize("written", NO_DURATIONS)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="expected"):
        seconds(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (131_065, 131_065),
        ("131065", 131_065),
        ("64KiB", 65_536),
        ("1.5 MiB", 1_572_864),
        ("2GiB", 2_147_483_648),
        ("10MB", 10_000_000),
        ("7B", 7),
        (" 1GB ", 1_000_000_000),
    ],
)
def test_a_size_is_bytes(written: object, meant: int) -> None:
    assert size(written) == meant


@pytest.mark.parametrize(
    "written", ["", "KiB", "64kib", "64K", "-1", "1TiB", "1e3", "²", None, True, 1.5, 0, -1, "0", "0.5B", [1]]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="expected"):
        size(written)


@pytest.mark.parametrize(
    ("written", "meant"), [("10/s", 10.0), ("600/m", 10.0), ("1800 / h", 0.5), (" 0.5/s ", 0.5)]
)
def test_a_rate_is_events_a_second(written: object, meant: float) -> None:
    assert rate(written) == pytest.approx(meant)


@pytest.mark.parametrize("written", ["", "10", 10, "10/d", "10/", "/s", "-1/s", "0/s", "10 s", None, True])
def test_what_is_no_rate_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="expected a rate such as"):
        rate(written)


WRITTEN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(),
    st.text(st.characters(codec="ascii", exclude_categories=["C"])),
    st.from_regex(r"\A ?[0-9]{1,5}(\.[0-9]{1,3})? ?(ms|s|m|h|d|KiB|MB|B|/s)? ?\Z"),
)


def checked(read: Callable[[object], float], written: object) -> float | str:
    try:
        return read(written)
    except ValidationError as error:
        return str(error)


@given(WRITTEN)
def test_whatever_is_written_is_a_value_above_0_or_a_mistake_in_words(written: object) -> None:
    for read in (seconds, size, rate):
        found = checked(read, written)
        if isinstance(found, str):
            assert "expected" in found
        else:
            assert 0 < found < float("inf")


@pytest.mark.parametrize(
    ("read", "written"),
    [
        (seconds, 10**400),
        (seconds, "²"),
        (size, "9" * 400),
        (size, "9" * 400 + "GiB"),
        (rate, "9" * 400 + "/s"),
    ],
    ids=["seconds", "digit", "size", "size with unit", "rate"],
)
def test_an_odd_number_is_a_mistake_in_words_too(read: Callable[[object], float], written: object) -> None:
    assert "expected" in str(checked(read, written))


def test_a_file_must_be_readable(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(ValidationError, match=r"expected a readable file, but .*ca\.pem: No such file"):
        readable(file)
    with pytest.raises(ValidationError, match="Is a directory"):
        readable(tmp_path)
    file.write_text("x")
    assert readable(str(file)) == file


def test_a_directory_must_be_one(tmp_path: Path) -> None:
    assert directory(str(tmp_path)) == tmp_path
    with pytest.raises(ValidationError, match="expected a directory, but"):
        directory(tmp_path / "gone")


def test_a_secret_file_is_its_text_without_the_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"two words\r\n")
    assert read_secret(file) == "two words"
    assert secret(None, file) == "two words"
    assert secret(SecretStr("other"), file) == "two words"
    assert secret(SecretStr("given"), None) == "given"
    assert secret(None, None) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (b"\xffhunter2", "is not text in UTF-8"),
        ("hunter2".encode("utf-16"), "is not text in UTF-8"),
        (b"hunter2\nsecond\n", "has 2 lines: a secret is one"),
        (b"hunter2\r\n\r\nthird", "has 3 lines"),
    ],
)
def test_an_unusable_secret_file_is_told_with_its_path(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CredentialError, match=told) as caught:
        read_secret(file)
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbftwo words", b"\xef\xbb\xbftwo words\r\n", b"two words\n\n"]
)
def test_what_an_editor_adds_is_no_part_of_a_secret(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    assert read_secret(file) == "two words"


class Login(Model):
    username: str
    password: SecretStr


def test_a_part_of_the_configuration_takes_no_unknown_key_and_no_change() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Login.model_validate({"username": "bridge", "password": "x", "pasword": "y"})
    login = Login(username="bridge", password=SecretStr("hunter2"))
    with pytest.raises(ValidationError, match="frozen"):
        login.username = "other"  # type: ignore[misc] # that is the point


def test_a_secret_is_not_shown_by_a_model_or_its_errors() -> None:
    assert "hunter2" not in repr(Login(username="bridge", password=SecretStr("hunter2")))
    with pytest.raises(ValidationError) as caught:
        Login.model_validate({"username": ["hunter2"], "password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


LONG = "x" * 4097
TOO_LONG = "String should have at most 4096 characters"


@pytest.mark.parametrize(
    ("model", "document", "told"),
    [
        (
            Command,
            {"do": "replay"} | {f"k{n}": 0 for n in range(100_000)},
            "at most 100 members, found 100001",
        ),
        (Change, {"do": "limits", "limits": {str(n): 0 for n in range(90_000)}}, "members, found 90000"),
        (Command, {"do": "replay"} | {f"k{n}": 0 for n in range(90)}, "not permitted; and 80 more"),
        (Command, {"do": "replay", "k" * 500_000: 0}, "Extra inputs are not permitted"),
        (
            Command,
            {"do": "replay", "numbers": ["a"] * 200_000},
            "('numbers', 0): Input should be a valid integer",
        ),
        *(
            (Command, {"do": "replay", name: LONG}, TOO_LONG)
            for name in ("to", "service", "source", "cause", "when")
        ),
        (Change, {"do": "limits", "key": LONG}, TOO_LONG),
        (Change, {"do": "limits", "limits": {LONG: "1"}}, TOO_LONG),
        (Change, {"do": "limits", "limits": {"rate": LONG}}, TOO_LONG),
        (Again, {"id": LONG}, TOO_LONG),
        (Again, {"id": "x", "source": LONG}, TOO_LONG),
        (Acknowledgement, {"part": LONG}, TOO_LONG),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else "",
)
def test_a_document_without_bounds_has_short_mistakes(
    model: type[Document], document: dict[str, object], told: str
) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate(document)
    assert told in mistakes(error.value)
    assert len(mistakes(error.value)) < 1000
    assert error.value.error_count() <= 100
