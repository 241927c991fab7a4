"""What an answer of OSCAR means, or the lack of one: the whole table of README ("answer → reaction") as code.

Pure: what came back for one POST goes in, an `Answer` comes out.

`/job` (pkg/handlers/job.go) accepts with 201 and nothing else. Every 4xx is about the caller, the service or
the ingress in front, not about the event, except the two that name the body (413, 422). A 5xx may be the
event's own or the cluster's. It is the cluster's where a gateway gave it (502, 503, 504), where it is empty
(the handler panics when it can't read the user), and where its text is Kubernetes' for "not now".

Of the cluster's own, CAPACITY is what fewer calls at once would mend or would not make worse: a quota, a
throttle, a server that takes the call and then has no time for it. UNAVAILABLE is what says nothing of load,
since the call did not get through at all.

`/run` (pkg/handlers/run.go) hands on the application's status, so all is the application's word on the event
but the few answers that OSCAR gives before it calls the application. A gateway's 502 or 504 does not say what
became of the call (RFC 9110, 15.6.3 and 15.6.5): it may have been made. 408, 425, 429 and 503 say that it was
not processed (RFC 9110, 15.5.9; RFC 8470, 5.2; RFC 6585, 4), so they come again. Of time-outs only `/job`'s
are capacity: how long a run takes is the application's affair.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp

from bridge.core.errors import no_descriptors
from bridge.core.ports import NO_DESCRIPTORS, Answer, Verdict
from bridge.destinations.oscar.exchange import NoReply, Reply
from bridge.telemetry.logging import excerpt

_LONGEST_PAUSE = 3600.0
"""Seconds of `Retry-After` believed at most: a service that is back sooner is not left alone for a day."""

CREATED = Answer(Verdict.ACCEPTED, status=201)
SERVICE_TOKEN_LENGTH = 64
"""OSCAR tells a service token by its length, and takes any other for an access token (run.go)."""

_TOO_MUCH = frozenset((429, 503))
_GATEWAY_TIMED_OUT = frozenset((504, 524))
"""524 is Cloudflare's."""
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
"""With Kueue, also when the user's quota is full for the moment, and when two calls try at once, since both
make a workload of the service's name (pkg/utils/kueue.go, VerifyWorkload). OSCAR tries that before it calls
the application, so it is capacity with `/run` too."""
_NOT_IN_THE_VO = "this user isn't enrrolled on the vo"

_TOO_MUCH_AT_ONCE = re.compile(
    r"""
    # The quota of the namespace is used up, not counted yet, or takes too long to count.
    exceeded\ quota | status\ unknown\ for\ quota | quota\ evaluation\ timed\ out
    # The throttle of the API server, or of OSCAR's own client.
  | too\ many\ requests | client\ rate\ limiter
    # Asked for each job (by Kueue, a policy): it grows slow with their number before it fails.
  | failed\ (?:calling|to\ call)\ webhook
    # Requests that wait too long, leaders lost by load, a store that is full: etcd can't keep up.
  | etcdserver:\ (?!request\ is\ too\ large) | leader\ changed
    # Nothing more is made in this namespace; it says "not now", whatever is asked for.
  | is\ being\ terminated
    # Lost races, of which there are fewer with fewer calls at once: for the quota, and to be a user's first.
  | the\ object\ has\ been\ modified | ^secrets\ "[^"]*"\ already\ exists$
    # The API server's own 503, which one under load answers.
  | the\ server\ is\ currently\ unable\ to\ handle
    # The API server, or what it asks, took the call, and did not finish in time.
  | unable\ to\ return\ a\ response\ in\ the\ time\ allotted | request\ did\ not\ complete\ within
  | context\ deadline\ exceeded | TLS\ handshake\ timeout
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What Kubernetes says of itself in a 500 of `/job` that has too much to do (apimachinery, api/errors)."""
_OUT_OF_ORDER = re.compile(
    r"""
    # Errors of the API server that give no reason.
    Internal\ error\ occurred: | has\ prevented\ the\ request\ from\ succeeding
    # Go's url.Error and its network errors: Kubernetes, or UserInfo, was not reached, or hung up.
  | ^(?:Get|Post|Put|Patch|Delete)\ "https?:// | connection\ (?:refused|reset|lost) | unexpected\ EOF
    # A time-out of Go's below HTTP: most often of a connection that never came about.
  | i/o\ timeout
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What a 500 of `/job` says where Kubernetes is out of order or out of reach: nothing about its load."""


def judge(
    mode: Literal["job", "run"], name: str, came: Reply | NoReply, *, idempotent: bool, token: str, path: str
) -> Answer:
    """Judge what came back for the job `name`, asked for with `token` at `path`.

    A `/run` 404 that is the application's by the look of it is REJECTED: the caller may know better.
    """
    repeatable = mode == "job" or idempotent
    if isinstance(came, NoReply):
        return _unanswered(came, path, token, mode=mode, repeatable=repeatable)
    if came.status == 201:
        return CREATED
    text = came.beginning.decode("utf-8", "replace")
    if mode == "job":
        verdict = _judge_job(name, came.status, text.strip())
    else:
        service_token = len(token) == SERVICE_TOKEN_LENGTH
        verdict = _judge_run(came.status, text, service_token=service_token, repeatable=repeatable)
    if verdict is Verdict.ACCEPTED or verdict is Verdict.DUPLICATE:
        return Answer(verdict, status=came.status)
    what = f"{came.status} {came.reason}"
    if came.status < 300:
        what += ", but OSCAR accepts a job with 201 alone: is the endpoint OSCAR's?"
    detail = excerpt(f"{what}: {text}", token)
    return Answer(
        verdict,
        f"http_{came.status}",
        detail,
        came.status,
        retry_after(came.headers.get("retry-after")),
        perhaps_its_own=_perhaps_of_the_event(mode, verdict, came.status, text),
    )


def _perhaps_of_the_event(mode: Literal["job", "run"], verdict: Verdict, status: int, text: str) -> bool:
    """Tell whether it may be for this event alone that it was not accepted, which its siblings then show.

    A trouble of the server may be: one body can be what it panics over, what takes it too long, or what its
    gateway gives up on. Of refusals only those by what reads the body: a firewall in between, which answers
    with a 4xx of the operator's choice, or the application of a `/run`. A 401, 404 or 407, a redirect, and of
    `/job` another success than 201, are the same for all events.
    """
    if verdict is not Verdict.REFUSED:
        return verdict not in (Verdict.REJECTED, Verdict.UNKNOWN)
    if mode == "run":
        return status < 400 or (status == 401 and not text)
    return 400 <= status < 500 and status not in (401, 404, 407) and not text.startswith(_OSCARS_OWN)


def _judge_job(name: str, status: int, text: str) -> Verdict:
    if (
        status >= 400
        and text.removeprefix("object is being deleted: ") == f'jobs.batch "{name}" already exists'
    ):
        return Verdict.DUPLICATE
    if status == 502 and _NO_SUCH_ISSUER in text:
        return Verdict.REFUSED
    if (
        status in _TOO_MUCH
        or status in _GATEWAY_TIMED_OUT
        or (status == 400 and text.startswith(_WORKLOAD_DOES_NOT_FIT))
        or (status == 500 and not text)
    ):
        return Verdict.CAPACITY
    if status in _COME_AGAIN:
        return Verdict.UNAVAILABLE
    if status >= 500:
        if _TOO_MUCH_AT_ONCE.search(text):
            return Verdict.CAPACITY
        return Verdict.UNAVAILABLE if not text or _OUT_OF_ORDER.search(text) else Verdict.FAILED
    return Verdict.REJECTED if status in _ABOUT_THE_BODY else Verdict.REFUSED


def _judge_run(status: int, text: str, *, service_token: bool, repeatable: bool) -> Verdict:
    if 200 <= status < 300:
        return Verdict.ACCEPTED
    if status < 400 or status == 407:
        return Verdict.REFUSED  # the endpoint is not OSCAR's, or not https; a proxy wants credentials
    if status in _TOO_MUCH or (status == 400 and text.startswith(_WORKLOAD_DOES_NOT_FIT)):
        return Verdict.CAPACITY
    if (
        (status == 400 and text.startswith(_AMBIGUOUS_OR_NO_ISSUER))
        or (status == 401 and (not text or text.startswith(_NOT_IN_THE_VO)))
        or (status == 404 and not text and not service_token)
        or (status == 502 and _NO_SUCH_ISSUER in text)
    ):
        return Verdict.REFUSED
    if status in _MAY_HAVE_RUN and not repeatable:
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


def no_answer(error: Exception, *, sent: bool = True) -> str:
    """Tell why no answer came, as a bounded word, to a request of which nothing was sent unless `sent`."""
    if no_descriptors(error):
        return NO_DESCRIPTORS
    # Behind the handshake an error of TLS is one of a connection that breaks off.
    if isinstance(error, aiohttp.ClientSSLError) or (not sent and isinstance(error, ssl.SSLError)):
        return "tls"
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return "proxy"
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return "connect"
    if isinstance(error, TimeoutError) and error.errno is None:  # the kernel's own has a number
        return "timeout"
    return "answer_lost" if sent else "connect"


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


def unanswered(verdict: Verdict, cause: str, request: str, told: str, *secrets: str) -> Answer:
    """Make the Answer for a request that got none, for a reason that is `told`."""
    return Answer(verdict, cause, excerpt(f"{request}: {told}", *secrets), ours=cause == NO_DESCRIPTORS)


def _unanswered(
    came: NoReply, path: str, token: str, *, mode: Literal["job", "run"], repeatable: bool
) -> Answer:
    cause = no_answer(came.cause, sent=came.sent)
    if came.sent and not repeatable:
        verdict = Verdict.UNKNOWN
    elif came.sent and mode == "job" and cause == "timeout":
        verdict = Verdict.CAPACITY  # OSCAR has the call, and it waits there for its turn
    else:
        verdict = Verdict.UNAVAILABLE
    answer = unanswered(verdict, cause, f"POST {path}", str(came), token)
    return replace(answer, perhaps_its_own=came.sent and verdict is not Verdict.UNKNOWN)
