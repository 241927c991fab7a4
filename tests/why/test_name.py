"""A name as a person gives it, and what goes by it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.why.name import Name


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("leaf-1.nc", ["leaf-1.nc", "/data/in/leaf-1.nc", "runs/leaf-1.nc"]),
        ("in/leaf-1.nc", ["/data/in/leaf-1.nc"]),
        ("*-1.nc", ["leaf-1.nc", "/data/in/leaf-1.nc"]),
        ("leaf-?.nc", ["/data/leaf-1.nc", "/data/leaf-?.nc"]),
        ("leaf-[12].nc", ["/data/leaf-2.nc", "/data/leaf-[12].nc"]),
        ("leaf-[]1].nc", ["leaf-1.nc", "/data/leaf-].nc"]),
        ("[]leaf[*.nc", ["[]leaf[1].nc", "/data/[]leaf[.nc"]),
        ("uploads/3/1042", ["uploads/3/1042@1764500000000", "uploads/3/1042@1764500000000+1"]),
        ("uploads/3/1042@17", ["uploads/3/1042@17", "uploads/3/1042@17+12"]),
        ("s3://box/\udcff", ["s3://box/\udcff"]),
        ("s3://box/a/b c.nc", ["s3://box/a/b%20c.nc?event=ObjectCreated%3APut&etag=1"]),
        (
            "s3://box/a.nc?event=ObjectCreated%3APut&etag=1",
            ["s3://box/a.nc?event=ObjectCreated%3APut&etag=1"],
        ),
    ],
)
def test_what_goes_by_a_name(name: str, fits: list[str]) -> None:
    for text in fits:
        assert Name(name).fits(text), text
        assert Name(name).part in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("leaf-1.nc", "/data/in/cloverleaf-1.nc"),
        ("leaf-1.nc", "/data/in/leaf-1.nc.tmp"),
        ("1.nc", "leaf-1.nc"),
        ("uploads/3/104", "uploads/3/1042@1764500000000"),
        ("uploads/3/1042@17", "uploads/3/1042@17+x"),
        ("s3://box/a.nc", "s3://box/a.nc2?event=x"),
        ("s3://box/a.nc", "a.nc"),
        ("leaf-[12].nc", "leaf-3.nc"),
    ],
)
def test_what_does_not(name: str, text: str) -> None:
    assert not Name(name).fits(text)


@given(name=st.text("ab/*?[]-1@+", min_size=1, max_size=8), text=st.text("ab/-1@+[", max_size=8))
def test_whatever_fits_has_the_part_that_is_searched_for(name: str, text: str) -> None:
    wanted = Name(name)
    assert wanted.fits(name)
    assert wanted.fits(f"/data/{name}")
    if wanted.fits(text):
        assert wanted.part in text


def test_the_longest_part_is_searched_for() -> None:
    assert Name("uploads/3/1042").part == "uploads/3/1042"
    assert Name("/data/*/leaf-1.nc").part == "/leaf-1.nc"
    assert Name("s3://box/a/leaf 1.nc").part in ("s3:", "box")
    assert Name("s3://box/a b/leaf-1.nc").part == "leaf-1.nc"


@pytest.mark.parametrize(
    "name",
    [
        *(piece * 2048 for piece in ("a*", "a/", "a?", "[a", "[]", "s3", "é/")),
        "[" * 4096,
        "?" * 4096,
        "s3://box/" + "é/1" * 1362,
        "*".join(map(str, range(1041))),
        "s3://box/" + "/é".join(map(str, range(850))),
    ],
    ids=lambda name: name[:12],
)
def test_a_long_name_does_not_hold_up_the_loop(name: str) -> None:
    best = 1.0
    for _ in range(5):
        began = time.thread_time()
        Name(name)
        best = min(best, time.thread_time() - began)
    assert best < 0.005
    assert Name(name).fits(f"/data/{name}")
