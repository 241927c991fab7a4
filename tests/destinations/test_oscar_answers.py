"""The table answer → verdict, and what a detail may hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.ports import Verdict
from bridge.destinations.oscar.answers import judge_status, retry_after
from bridge.telemetry.logging import EXCERPT_CHARACTERS, excerpt


@pytest.mark.parametrize(
    ("status", "job", "run"),
    [
        (200, "accepted", "accepted"),
        (201, "accepted", "accepted"),
        (301, "refused", "refused"),
        (400, "refused", "rejected"),
        (401, "refused", "refused"),
        (403, "refused", "refused"),
        (404, "refused", "rejected"),  # on /run once the service is known to exist
        (405, "refused", "rejected"),
        (407, "refused", "refused"),
        (408, "unavailable", "unavailable"),
        (409, "refused", "rejected"),
        (413, "rejected", "rejected"),
        (422, "rejected", "rejected"),
        (425, "unavailable", "unavailable"),
        (429, "unavailable", "unavailable"),
        (500, "failed", "failed"),
        (501, "failed", "failed"),
        (502, "unavailable", "unavailable"),
        (503, "unavailable", "unavailable"),
        (504, "unavailable", "unavailable"),
        (599, "failed", "failed"),
    ],
)
def test_a_status_is_judged_by_the_table(status: int, job: str, run: str) -> None:
    assert judge_status("job", status, "") is Verdict(job)
    assert judge_status("run", status, "") is Verdict(run)


@pytest.mark.parametrize(
    "text",
    [
        "More than one service authorize, use the owner query to select the service",
        "Error getting oidc manager for issuer 'https://example.org'",
        "invalid workload: try to reduce the service resource (cpu, memory, etc.)",
    ],
)
def test_oscars_own_400_on_run_is_not_about_the_event(text: str) -> None:
    assert judge_status("run", 400, text) is Verdict.REFUSED


@given(st.sampled_from(["job", "run"]), st.integers(100, 999), st.text())
def test_every_status_has_a_verdict(mode: Literal["job", "run"], status: int, text: str) -> None:
    assert isinstance(judge_status(mode, status, text), Verdict)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(None) is None
    assert retry_after(" 120 ") == 120
    assert retry_after("9" * 400) == 3600
    then = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert then is not None
    assert 85 < then <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0


@given(st.text())
def test_a_retry_after_that_is_none_is_ignored(value: str) -> None:
    pause = retry_after(value)
    assert pause is None or 0 <= pause <= 3600


def test_an_excerpt_is_short_and_on_one_line() -> None:
    assert excerpt("a\r\n b\t c") == "a b c"
    assert len(excerpt("x" * 10_000)) == EXCERPT_CHARACTERS


def test_an_excerpt_has_no_secret() -> None:
    told = excerpt("Authorization: Bearer abcdef, and again 0123456789", "0123456789", "")
    assert "abcdef" not in told
    assert "0123456789" not in told
