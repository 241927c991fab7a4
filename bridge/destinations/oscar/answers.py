"""What an answer of OSCAR means, or the lack of one: the whole table of README ("answer → reaction") as code.

Pure: what came back for one POST goes in, an `Answer` comes out.

`/job` (pkg/handlers/job.go) accepts with 201 and nothing else. Every 4xx is about the caller, the service or
the ingress in front, not about the event, except the two that name the body (413, 422). A 5xx may be the
event's own or the cluster's. It is the cluster's where a gateway gave it (502, 503, 504), where it is empty
(the handler panics when it can't read the user), and where its text is Kubernetes' for "not now".

`/run` (pkg/handlers/run.go) hands on the application's status, so all is the application's word on the event
but the few answers that OSCAR gives before it calls the application. A gateway's 502 or 504 does not say what
became of the call (RFC 9110, 15.6.3 and 15.6.5): it may have been made. 408, 425, 429 and 503 say that it was
not processed (RFC 9110, 15.5.9; RFC 8470, 5.2; RFC 6585, 4), so they come again.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

import aiohttp

from bridge.core.errors import no_descriptors
from bridge.core.ports import NO_DESCRIPTORS, Answer, Verdict
from bridge.telemetry.logging import excerpt

_LONGEST_PAUSE = 3600.0
"""Seconds of `Retry-After` believed at most: a service that is back sooner is not left alone for a day."""

CREATED = Answer(Verdict.ACCEPTED, status=201)
SERVICE_TOKEN_LENGTH = 64
"""OSCAR tells a service token by its length, and takes any other for an access token (run.go)."""

_COME_AGAIN = frozenset((408, 425, 429, 502, 503, 504))
_MAY_HAVE_RUN = frozenset((502, 504, 520, 524))
"""What a gateway answers that had no whole answer from the application; 520 and 524 are Cloudflare's."""
_ABOUT_THE_BODY = frozenset((413, 422))
_NO_SUCH_ISSUER = "Error getting oidc manager for issuer"
"""A token that OSCAR can't read has status 502, and this behind the reason: the handler goes on after it."""
_AMBIGUOUS_OR_NO_ISSUER = ("More than one service authorize", _NO_SUCH_ISSUER)
_NOT_PROVISIONED = "MinIO user not provisioned"
_OSCARS_OWN = (*_AMBIGUOUS_OR_NO_ISSUER, _NOT_PROVISIONED)
"""How the 400s and 403s of `/job` begin that are OSCAR's own."""
_WORKLOAD_DOES_NOT_FIT = "invalid workload"
"""With Kueue, also when the user's quota is full for the moment (pkg/utils/kueue.go, VerifyWorkload)."""
_NOT_IN_THE_VO = "this user isn't enrrolled on the vo"

_NOT_NOW = re.compile(
    r"""
    exceeded\ quota | status\ unknown\ for\ quota | quota\ evaluation\ timed\ out
  | too\ many\ requests | client\ rate\ limiter
  | failed\ (?:calling|to\ call)\ webhook | Internal\ error\ occurred:
  | etcdserver:\ (?!request\ is\ too\ large) | leader\ changed
  | is\ being\ terminated
  | the\ object\ has\ been\ modified        # somebody else wrote the quota at the same moment
  | ^secrets\ "[^"]*"\ already\ exists$      # calls that race to be a user's first
  | the\ server\ is\ currently\ unable\ to\ handle | unable\ to\ return\ a\ response\ in\ the\ time\ allotted
  | request\ did\ not\ complete\ within | has\ prevented\ the\ request\ from\ succeeding
  | context\ deadline\ exceeded | TLS\ handshake\ timeout | i/o\ timeout
  | ^(?:Get|Post|Put|Patch|Delete)\ "https?://   # Go's url.Error: no answer of Kubernetes, or of UserInfo
  | connection\ (?:refused|reset|lost) | unexpected\ EOF
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What Kubernetes says of itself in a 500 of `/job`, whatever the event (apimachinery, api/errors)."""


class Exchange(NamedTuple):
    """One POST: what came back, or why nothing did."""

    status: int = 0
    """0 when no answer came."""
    reason: str = ""
    text: str = ""
    """The beginning of the body."""
    retry_after: float | None = None
    error: Exception | None = None
    """Why no answer came."""
    sent: bool = True
    """Whether the body was on its way, so that the other side may have acted on it."""


def judge(
    mode: Literal["job", "run"], name: str, came: Exchange, *, idempotent: bool, token: str, path: str
) -> Answer:
    """Judge what came back for the job `name`, asked for with `token` at `path`.

    A `/run` 404 that is the application's by the look of it is REJECTED: the caller may know better.
    """
    if came.status == 201:
        return CREATED
    repeatable = mode == "job" or idempotent
    if not came.status:
        return _unanswered(came, path, token, repeatable=repeatable)
    if mode == "job":
        verdict = _judge_job(name, came)
    else:
        verdict = _judge_run(came, service_token=len(token) == SERVICE_TOKEN_LENGTH, repeatable=repeatable)
    if verdict is Verdict.ACCEPTED or verdict is Verdict.DUPLICATE:
        return Answer(verdict, status=came.status)
    what = f"{came.status} {came.reason}"
    if came.status < 300:
        what += ", but OSCAR accepts a job with 201 alone: is the endpoint OSCAR's?"
    detail = excerpt(f"{what}: {came.text}", token)
    return Answer(
        verdict,
        f"http_{came.status}",
        detail,
        came.status,
        came.retry_after,
        perhaps_its_own=verdict is Verdict.REFUSED and _perhaps_of_the_event(mode, came),
    )


def _perhaps_of_the_event(mode: Literal["job", "run"], came: Exchange) -> bool:
    """Tell whether a refusal may be by what reads the body: a firewall in between, or the application.

    Firewalls answer with 403 or a status of the operator's choice, a page with 200 among them.
    """
    if mode == "run":
        return came.status < 400 or (came.status == 401 and not came.text)
    return came.status not in (401, 404, 407, 502) and not came.text.startswith(_OSCARS_OWN)


def _judge_job(name: str, came: Exchange) -> Verdict:
    status, text = came.status, came.text.strip()
    if (
        status >= 400
        and text.removeprefix("object is being deleted: ") == f'jobs.batch "{name}" already exists'
    ):
        return Verdict.DUPLICATE
    if status == 502 and _NO_SUCH_ISSUER in text:
        return Verdict.REFUSED
    if status in _COME_AGAIN or (status == 400 and text.startswith(_WORKLOAD_DOES_NOT_FIT)):
        return Verdict.UNAVAILABLE
    if status >= 500:
        return Verdict.UNAVAILABLE if not text or _NOT_NOW.search(text) else Verdict.FAILED
    return Verdict.REJECTED if status in _ABOUT_THE_BODY else Verdict.REFUSED


def _judge_run(came: Exchange, *, service_token: bool, repeatable: bool) -> Verdict:
    status, text = came.status, came.text
    if 200 <= status < 300:
        return Verdict.ACCEPTED
    if status < 400 or status == 407:
        return Verdict.REFUSED  # the endpoint is not OSCAR's, or not https; a proxy wants credentials
    if status == 400 and text.startswith(_WORKLOAD_DOES_NOT_FIT):
        return Verdict.UNAVAILABLE
    if (
        (status == 400 and text.startswith(_AMBIGUOUS_OR_NO_ISSUER))
        or (status == 401 and (not text or text.startswith(_NOT_IN_THE_VO)))
        or (status == 404 and not text and not service_token)
        or (status == 502 and _NO_SUCH_ISSUER in text)
    ):
        return Verdict.REFUSED
    if status in _MAY_HAVE_RUN and came.sent and not repeatable:
        return Verdict.UNKNOWN
    if status in _COME_AGAIN or status in _MAY_HAVE_RUN:
        return Verdict.UNAVAILABLE
    return Verdict.FAILED if status >= 500 else Verdict.REJECTED


def about_the_token(mode: Literal["job", "run"], answer: Answer, *, doubtful: bool) -> bool:
    """Tell whether another token could change `answer`, and asking again with it does no harm.

    OSCAR's own 401 always, and a token that OSCAR can't read. An access token that expired, or is refused,
    shows as a 5xx on `/job` (job.go reads the user before it tests the error), so those count where the token
    is `doubtful`, near its expiry. On `/run` it shows as an empty 404 (run.go), which needs a look.
    """
    status = answer.status
    if status is None or answer.verdict is Verdict.DUPLICATE:
        return False
    if mode == "job":
        return (status in (401, 502) and answer.verdict is Verdict.REFUSED) or (status >= 500 and doubtful)
    return answer.verdict is Verdict.REFUSED and status in (401, 502)


def needs_an_introduction(mode: Literal["job", "run"], answer: Answer) -> bool:
    """Tell whether OSCAR wants a direct request of this user before it takes jobs (job.go, UserExists)."""
    return mode == "job" and answer.status == 403 and _NOT_PROVISIONED in answer.detail


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


def _unanswered(came: Exchange, path: str, token: str, *, repeatable: bool) -> Answer:
    error = came.error or ConnectionError("no answer")
    cause, may_be_sent = no_answer(error)
    verdict = Verdict.UNKNOWN if may_be_sent and came.sent and not repeatable else Verdict.UNAVAILABLE
    return unanswered(verdict, cause, f"POST {path}", error, token)
