"""What an answer of OSCAR means, or the lack of one: the table of README ("answer → reaction") as code.

Pure: statuses, texts and exceptions go in, an `Answer` comes out.

`/job` (pkg/handlers/job.go): every 4xx is about the caller, the service or the ingress in front, not
about the event, except the two that name the body (413, 422). A 5xx may be the event's own or the
cluster's; the gateway's (502, 503, 504) never is.

`/run` (pkg/handlers/run.go) hands on the application's status, so any 4xx but those OSCAR itself gives
before it calls the application (401, 403, and 400 or 404 told apart by their text or by a look at the
service) is the application's word on the event. 408 and 425 say that the request was not processed
(RFC 9110, 15.5.9; RFC 8470, 5.2), so they come again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp

from bridge.core.errors import no_descriptors
from bridge.core.ports import NO_DESCRIPTORS, Answer, Verdict
from bridge.telemetry.logging import excerpt

_LONGEST_PAUSE = 3600.0
"""Seconds of `Retry-After` believed at most: a service that is back sooner is not left alone for a day."""

_COME_AGAIN = frozenset((408, 425, 429, 502, 503, 504))
_ABOUT_THE_BODY = frozenset((413, 422))
_ABOUT_THE_CALLER = frozenset((401, 403, 407))
_OSCARS_OWN_400 = ("More than one service authorize", "Error getting oidc manager", "invalid workload")
"""How the 400s begin that OSCAR gives on `/run` before it calls the application (run.go)."""


def judge_status(mode: Literal["job", "run"], status: int, text: str) -> Verdict:
    """Judge an answer that arrived. A `/run` 404 is judged as the application's: the caller checks that."""
    if 200 <= status < 300:
        return Verdict.ACCEPTED
    if status in _COME_AGAIN:
        return Verdict.UNAVAILABLE
    if status >= 500:
        return Verdict.FAILED
    if status < 400 or status in _ABOUT_THE_CALLER:
        return Verdict.REFUSED  # 3xx: the endpoint is not OSCAR's, or not https
    if status in _ABOUT_THE_BODY:
        return Verdict.REJECTED
    if mode == "job" or (status == 400 and text.startswith(_OSCARS_OWN_400)):
        return Verdict.REFUSED
    return Verdict.REJECTED


def judge_management(status: int) -> Verdict:
    """Judge an answer other than 2xx of the management API or of a token endpoint."""
    return Verdict.UNAVAILABLE if status in _COME_AGAIN or status >= 500 else Verdict.REFUSED


def no_answer(error: Exception) -> tuple[str, bool]:
    """Tell why no answer came, as a bounded word, and whether the request may have been sent.

    With a timeout aiohttp does not tell; the caller's own knowledge of the body decides then.
    """
    if no_descriptors(error):
        return NO_DESCRIPTORS, False
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls", False
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return "proxy", False
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return "connect", False
    if isinstance(error, TimeoutError):
        return "timeout", True
    return "answer_lost", True


def retry_after(value: str | None) -> float | None:
    """Read a `Retry-After` header (RFC 9110, 10.2.3), seconds or a date, as seconds from now."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), _LONGEST_PAUSE)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)  # "-0000": UTC, RFC 5322, 3.3
    return min(max((then - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_PAUSE)


def unanswered(verdict: Verdict, cause: str, request: str, error: Exception, *secrets: str) -> Answer:
    """Make the Answer for a request that got none."""
    what = str(error) or type(error).__name__
    return Answer(verdict, cause, excerpt(f"{request}: {what}", *secrets), ours=cause == NO_DESCRIPTORS)
