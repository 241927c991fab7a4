"""The invocation identity: one name for one (source, event, service), for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.identity import invocation_name

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, 2.1, as Kubernetes checks it
TEXT = st.text()  # lone surrogates too, which an upstream's broken bytes leave
TRIPLES = st.tuples(TEXT, TEXT, TEXT)


@pytest.mark.parametrize(
    ("source", "event_id", "service", "name"),
    [
        (
            "uploads",
            "uploads/3/1234567890/1740830400000",
            "plant-classification",
            "plant-classification-dd947bde6284597c4b3cd623f595c72c3af83a",
        ),
        ("bucket", "0f5c2a3e-9d8b-4c1a", "plants", "plants-1cfac308c8eb607c94fcf9e55350a3d5862697"),
        (
            "größe",
            "dcache:00001F\udcff",
            "Ünïcode_Service.with-a-very-long-name",
            "n-code-service-with-a-v-d539e21eab3a823a566e8527780761c8497ca5",
        ),
    ],
)
def test_the_name_never_changes(source: str, event_id: str, service: str, name: str) -> None:
    """These three are for ever: a changed one makes every event on its way a second job."""
    assert invocation_name(source, event_id, service) == name


@given(TRIPLES)
def test_a_name_is_a_dns_label_of_at_most_63_characters(triple: tuple[str, str, str]) -> None:
    name = invocation_name(*triple)
    assert LABEL.fullmatch(name)
    assert len(name) <= 63


@given(TRIPLES)
def test_the_same_three_give_the_same_name(triple: tuple[str, str, str]) -> None:
    assert invocation_name(*triple) == invocation_name(*triple)


@given(TRIPLES, TRIPLES)
def test_different_threes_give_different_names(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (invocation_name(*one) == invocation_name(*other)) == (one == other)


SEPARATORS = st.text("0123456789:/ \0-", max_size=6)


@given(TEXT | SEPARATORS, st.integers(0), st.integers(0), st.integers(0), st.integers(0))
def test_text_that_moves_over_a_boundary_gives_another_name(
    text: str, first: int, second: int, third: int, fourth: int
) -> None:
    def cut(one: int, other: int) -> tuple[str, str, str]:
        low, high = sorted((one % (len(text) + 1), other % (len(text) + 1)))
        return text[:low], text[low:high], text[high:]

    one, other = cut(first, second), cut(third, fourth)
    assert (invocation_name(*one) == invocation_name(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b1", "s"), ("ab", "1", "s")),
        (("a", "1:b", "s"), ("a1:", "b", "s")),
        (("", "a", "s"), ("a", "", "s")),
        (("a", "", "1:s"), ("a", "1:s", "")),
    ],
)
def test_no_two_threes_make_one_text(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert invocation_name(*one) != invocation_name(*other)


def test_a_person_reads_the_service_in_the_name() -> None:
    assert invocation_name("s", "1", "plant-classification").startswith("plant-classification-")
    assert invocation_name("s", "1", "--").startswith("event-")
    assert invocation_name("s", "1", "a" * 60).startswith("a" * 24 + "-")
