"""The table answer → verdict, and what a detail may hold."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ssl import SSLCertVerificationError, SSLError
from typing import Literal

import pytest
from aiohttp import (
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientHttpProxyError,
    ClientPayloadError,
    ConnectionTimeoutError,
    RequestInfo,
    ServerDisconnectedError,
    ServerTimeoutError,
)
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from bridge.core.ports import Answer, Verdict
from bridge.destinations.oscar.answers import about_the_token, judge, retry_after
from bridge.destinations.oscar.exchange import AnswerLost, NoReply, NotSent, Reply
from bridge.telemetry.logging import EXCERPT_CHARACTERS, excerpt

OURS = "plants-0123456789"
SERVICE_TOKEN, ACCESS_TOKEN = "0" * 64, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"
TO_OSCAR = ConnectionKey(
    "oscar.example.org", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)
NO_ROUTE = ClientConnectorError(TO_OSCAR, OSError(errno.EHOSTUNREACH, "No route to host"))
BAD_CERTIFICATE = ClientConnectorSSLError(TO_OSCAR, OSError("bad certificate"))
NO_TUNNEL = ClientHttpProxyError(
    RequestInfo(URL("http://proxy"), "CONNECT", CIMultiDictProxy(CIMultiDict()), URL("http://proxy")), ()
)
NO_DESCRIPTOR = ClientConnectorError(TO_OSCAR, OSError(errno.EMFILE, "Too many open files"))
NO_ISSUER = "token is malformedError getting oidc manager for issuer ''"

TOO_MUCH_AT_ONCE = [
    f'jobs.batch "{OURS}" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: …',
    f'jobs.batch "{OURS}" is forbidden: status unknown for quota: jobs, resources: count/jobs.batch',
    f'jobs.batch "{OURS}" is forbidden: unable to create new content in namespace as it is being terminated',
    'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: Post "https://kueue"',
    'failed calling webhook "policy.example.org": no endpoints available for service "policy"',
    'failed calling webhook "policy.example.org": Post "https://policy": connect: connection refused',
    "Internal error occurred: resource quota evaluation timed out",
    "Operation cannot be fulfilled on resourcequotas: the object has been modified",
    "Too many requests, please try again later.",
    "the server has received too many requests and has asked us to try again later (post jobs.batch)",
    "client rate limiter Wait returned an error: rate: Wait(n=1) would exceed context deadline",
    "etcdserver: request timed out",
    "etcdserver: leader changed",
    "etcdserver: mvcc: database space exceeded",
    "rpc error: code = Unavailable desc = leader changed",
    "the server is currently unable to handle the request (post jobs.batch)",
    "the server was unable to return a response in the time allotted, but may still be processing it",
    "Timeout: request did not complete within requested timeout",
    'Post "https://10.96.0.1:443/apis/batch/v1/namespaces/x/jobs": context deadline exceeded',
    'Get "https://10.96.0.1:443/api/v1/secrets": net/http: TLS handshake timeout',
    'secrets "ana-minio-other" already exists',
]
"""Kubernetes' texts that are about itself, or the namespace, and say that it is too much for now."""
OUT_OF_ORDER = [
    "Internal error occurred: jobs.batch: no kind registered",
    'an error on the server ("") has prevented the request from succeeding (post jobs.batch)',
    'Post "https://10.96.0.1:443/apis/batch/v1/namespaces/x/jobs": dial tcp no route to host',
    'Post "https://10.96.0.1:443/apis/batch/v1/namespaces/x/jobs": dial tcp 10.96.0.1:443: i/o timeout',
    "dial tcp 10.96.0.1:443: connect: connection refused",
    "dial tcp 10.96.0.1:443: i/o timeout",
    "read tcp 10.0.0.7:40112->10.96.0.1:443: read: connection reset by peer",
    "http2: client connection lost",
    "unexpected EOF",
]
"""Those by which it was not reached, or failed for a reason that it does not give."""
JOB: list[tuple[int, str, str]] = [
    (200, "", "refused"),
    (200, "Service under maintenance", "refused"),
    (200, '{"error": "quota"}', "refused"),
    (201, "", "accepted"),
    (201, "<html>", "accepted"),
    (202, "", "refused"),
    (204, "", "refused"),
    (299, "", "refused"),
    (301, "", "refused"),
    (307, "", "refused"),
    (400, "Error getting oidc manager for issuer 'https://example.org'", "refused"),
    (400, "More than one service authorize, use the owner query to select the service", "refused"),
    (400, "invalid workload: try to reduce the service resource (cpu, memory, etc.)", "capacity"),
    (401, "", "refused"),
    (401, "this user isn't enrrolled on the vo: ours", "refused"),
    (403, "MinIO user not provisioned for ana; submit a direct request first", "refused"),
    (404, "", "refused"),
    (404, "404 page not found", "refused"),
    (405, "", "refused"),
    (407, "", "refused"),
    (408, "", "unavailable"),
    (409, "", "refused"),
    (409, f'jobs.batch "{OURS}" already exists', "duplicate"),
    (413, "<html>413 Request Entity Too Large", "rejected"),
    (422, "", "rejected"),
    (425, "", "unavailable"),
    (429, "", "capacity"),
    (500, f'jobs.batch "{OURS}" already exists', "duplicate"),
    (500, f'object is being deleted: jobs.batch "{OURS}" already exists', "duplicate"),
    (500, f'jobs.batch "{OURS}x" already exists', "failed"),
    (500, f'jobs.batch "x{OURS}" already exists', "failed"),
    (
        500,
        f'admission webhook "policy" denied the request: workload for {OURS} already exists in queue',
        "failed",
    ),
    (500, f'pods "{OURS}" already exists', "failed"),
    (500, "", "capacity"),
    (500, " \n", "capacity"),
    (500, 'error ensuring credentials for user eve: secrets "eve" not found', "failed"),
    (500, f'Job.batch "{OURS}" is invalid: metadata.labels: Invalid value', "failed"),
    (500, "etcdserver: request is too large", "failed"),
    (500, "something else", "failed"),
    (501, "", "unavailable"),
    (502, "", "unavailable"),
    (502, "<html>502 Bad Gateway", "unavailable"),
    (502, NO_ISSUER, "refused"),
    (503, "", "capacity"),
    (503, "<html>503 Service Temporarily Unavailable", "capacity"),
    (504, "", "capacity"),
    (504, "<html>504 Gateway Time-out", "capacity"),
    (524, "<html>A timeout occurred", "capacity"),
    (599, "odd", "failed"),
]
RUN: list[tuple[int, str, str, str, str]] = [
    # status, text, token, may it be repeated
    (200, "", SERVICE_TOKEN, "once", "accepted"),
    (200, "<html>the application's page", SERVICE_TOKEN, "once", "accepted"),
    (201, "", SERVICE_TOKEN, "once", "accepted"),
    (204, "", ACCESS_TOKEN, "once", "accepted"),
    (301, "", SERVICE_TOKEN, "once", "refused"),
    (400, "no such column", SERVICE_TOKEN, "once", "rejected"),
    (400, "More than one service authorize, use the owner query", ACCESS_TOKEN, "once", "refused"),
    (400, "Error getting oidc manager for issuer 'x'", ACCESS_TOKEN, "once", "refused"),
    (400, "invalid workload: try to reduce the service", ACCESS_TOKEN, "once", "capacity"),
    (401, "", SERVICE_TOKEN, "once", "refused"),
    (401, "this user isn't enrrolled on the vo: ours", ACCESS_TOKEN, "once", "refused"),
    (401, "the database refuses the password", SERVICE_TOKEN, "once", "rejected"),
    (403, "", SERVICE_TOKEN, "once", "rejected"),
    (403, "not yours", ACCESS_TOKEN, "once", "rejected"),
    (404, "", ACCESS_TOKEN, "once", "refused"),
    (404, "", SERVICE_TOKEN, "once", "rejected"),
    (404, "no such column", ACCESS_TOKEN, "once", "rejected"),
    (405, "", SERVICE_TOKEN, "once", "rejected"),
    (407, "", SERVICE_TOKEN, "once", "refused"),
    (408, "", SERVICE_TOKEN, "once", "unavailable"),
    (409, "", SERVICE_TOKEN, "once", "rejected"),
    (413, "", SERVICE_TOKEN, "once", "rejected"),
    (422, "", SERVICE_TOKEN, "once", "rejected"),
    (425, "", SERVICE_TOKEN, "once", "unavailable"),
    (429, "", SERVICE_TOKEN, "once", "capacity"),
    (500, "", SERVICE_TOKEN, "once", "failed"),
    (
        500,
        "exceeded quota",
        SERVICE_TOKEN,
        "once",
        "failed",
    ),  # the application's words, not Kubernetes'
    (500, f'jobs.batch "{OURS}" already exists', SERVICE_TOKEN, "once", "failed"),
    (502, "", SERVICE_TOKEN, "once", "unknown"),
    (502, "", SERVICE_TOKEN, "idempotent", "unavailable"),
    (502, NO_ISSUER, ACCESS_TOKEN, "once", "refused"),
    (503, "", SERVICE_TOKEN, "once", "capacity"),
    (503, "", SERVICE_TOKEN, "idempotent", "capacity"),
    (504, "<html>504 Gateway Time-out", SERVICE_TOKEN, "once", "unknown"),
    (504, "", SERVICE_TOKEN, "idempotent", "unavailable"),
    (520, "", SERVICE_TOKEN, "once", "unknown"),
    (524, "", SERVICE_TOKEN, "once", "unknown"),
    (524, "", SERVICE_TOKEN, "idempotent", "unavailable"),
    (599, "", SERVICE_TOKEN, "once", "failed"),
]


def reply(status: int, text: str, reason: str = "Reason") -> Reply:
    return Reply(status, reason, {"retry-after": "7"}, text.encode("utf-8", "surrogatepass"))


def judged(
    mode: Literal["job", "run"],
    came: Reply | NoReply,
    *,
    idempotent: bool = False,
    token: str = SERVICE_TOKEN,
) -> Answer:
    return judge(mode, OURS, came, idempotent=idempotent, token=token, path=f"/{mode}/plants")


@pytest.mark.parametrize(("status", "text", "verdict"), JOB)
def test_an_answer_of_job_is_judged_by_the_table(status: int, text: str, verdict: str) -> None:
    for token in (SERVICE_TOKEN, ACCESS_TOKEN):
        answer = judged("job", reply(status, text), token=token)
        assert (answer.verdict, answer.status) == (Verdict(verdict), status)
    if verdict in ("accepted", "duplicate"):
        assert not answer.detail
    else:
        assert (answer.cause, answer.retry_after) == (f"http_{status}", 7.0)
        assert answer.detail.startswith(f"{status} Reason")


@pytest.mark.parametrize("text", TOO_MUCH_AT_ONCE)
def test_kubernetes_not_now_is_a_lack_of_capacity(text: str) -> None:
    answer = judged("job", reply(500, text))
    assert (answer.verdict, answer.cause) == (Verdict.CAPACITY, "http_500")


@pytest.mark.parametrize("text", OUT_OF_ORDER)
def test_a_kubernetes_out_of_reach_tells_nothing_of_its_load(text: str) -> None:
    answer = judged("job", reply(500, text))
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "http_500")


@pytest.mark.parametrize(("status", "text", "token", "repeat", "verdict"), RUN)
def test_an_answer_of_run_is_judged_by_the_table(
    status: int, text: str, token: str, repeat: str, verdict: str
) -> None:
    answer = judged("run", reply(status, text), idempotent=repeat == "idempotent", token=token)
    assert (answer.verdict, answer.status) == (Verdict(verdict), status)


@pytest.mark.parametrize(
    ("error", "sent", "cause", "job", "run", "again", "own"),
    [
        (ServerDisconnectedError(), True, "answer_lost", "unavailable", "unknown", "unavailable", True),
        (ServerDisconnectedError(), False, "connect", "unavailable", "unavailable", "unavailable", False),
        (ClientPayloadError(), True, "answer_lost", "unavailable", "unknown", "unavailable", True),
        (ConnectionResetError(), True, "answer_lost", "unavailable", "unknown", "unavailable", True),
        (ConnectionResetError(), False, "connect", "unavailable", "unavailable", "unavailable", False),
        (SSLCertVerificationError(), False, "tls", "unavailable", "unavailable", "unavailable", False),
        (SSLError(1, "alert"), True, "answer_lost", "unavailable", "unknown", "unavailable", True),
        (
            TimeoutError(errno.ETIMEDOUT, "no"),
            True,
            "answer_lost",
            "unavailable",
            "unknown",
            "unavailable",
            True,
        ),
        (
            TimeoutError(errno.ETIMEDOUT, "no"),
            False,
            "connect",
            "unavailable",
            "unavailable",
            "unavailable",
            False,
        ),
        (TimeoutError(), True, "timeout", "capacity", "unknown", "unavailable", True),
        (TimeoutError(), False, "timeout", "unavailable", "unavailable", "unavailable", False),
        (ServerTimeoutError(), True, "timeout", "capacity", "unknown", "unavailable", True),
        (ConnectionTimeoutError(), False, "connect", "unavailable", "unavailable", "unavailable", False),
        (NO_ROUTE, False, "connect", "unavailable", "unavailable", "unavailable", False),
        (BAD_CERTIFICATE, False, "tls", "unavailable", "unavailable", "unavailable", False),
        (NO_TUNNEL, False, "proxy", "unavailable", "unavailable", "unavailable", False),
        (NO_DESCRIPTOR, False, "no_descriptors", "unavailable", "unavailable", "unavailable", False),
    ],
)
def test_no_answer_is_harmless_to_jobs_and_unknown_to_what_may_have_run(
    error: Exception, sent: bool, cause: str, job: str, run: str, again: str, own: bool
) -> None:
    """`own`: what was sent may be what the answer was lost over, or took too long."""
    came = AnswerLost(error) if sent else NotSent(error)
    for answer, verdict in (
        (judged("job", came), Verdict(job)),
        (judged("run", came), Verdict(run)),
        (judged("run", came, idempotent=True), Verdict(again)),
    ):
        assert (answer.verdict, answer.cause, answer.status) == (verdict, cause, None)
        assert answer.perhaps_its_own == (own and verdict is not Verdict.UNKNOWN)
        assert answer.ours == (error is NO_DESCRIPTOR)
    assert judged("job", came).detail.startswith("POST /job/plants: ")


@pytest.mark.parametrize(
    ("mode", "status", "text", "own"),
    [
        ("job", 500, "no such secret", True),
        ("job", 500, "", True),
        ("job", 500, TOO_MUCH_AT_ONCE[0], True),
        ("job", 500, OUT_OF_ORDER[0], True),
        ("job", 408, "", True),
        ("job", 425, "", True),
        ("job", 429, "", True),
        ("job", 502, "", True),
        ("job", 503, "", True),
        ("job", 504, "", True),
        ("job", 413, "", False),
        ("job", 422, "", False),
        ("job", 201, "", False),
        ("run", 500, "", True),
        ("run", 503, "", True),
        ("run", 408, "", True),
        ("run", 502, "", False),  # unknown
        ("run", 404, "no such column", False),
    ],
)
def test_a_failure_may_be_of_one_event_and_its_siblings_must_tell(
    mode: Literal["job", "run"], status: int, text: str, own: bool
) -> None:
    assert judged(mode, reply(status, text)).perhaps_its_own is own


@pytest.mark.parametrize(
    ("mode", "status", "text", "token", "fresh", "near_its_expiry"),
    [
        ("job", 201, "", ACCESS_TOKEN, False, False),
        ("job", 401, "", SERVICE_TOKEN, True, True),
        ("job", 502, NO_ISSUER, ACCESS_TOKEN, True, True),
        ("job", 500, "", ACCESS_TOKEN, False, True),
        ("job", 500, f'jobs.batch "{OURS}" already exists', ACCESS_TOKEN, False, False),
        ("job", 503, "", ACCESS_TOKEN, False, True),
        ("job", 403, "", ACCESS_TOKEN, False, False),
        ("job", 404, "", ACCESS_TOKEN, False, False),
        ("run", 401, "", SERVICE_TOKEN, True, True),
        ("run", 401, "the application's", SERVICE_TOKEN, False, False),
        ("run", 404, "", ACCESS_TOKEN, False, False),
        ("run", 404, "", SERVICE_TOKEN, False, False),
        ("run", 404, "the application's", ACCESS_TOKEN, False, False),
        ("run", 500, "", ACCESS_TOKEN, False, False),
        ("run", 504, "", ACCESS_TOKEN, False, False),
    ],
)
def test_only_what_may_be_about_the_token_is_asked_again(
    mode: Literal["job", "run"], status: int, text: str, token: str, fresh: bool, near_its_expiry: bool
) -> None:
    answer = judged(mode, reply(status, text), token=token)
    assert about_the_token(mode, answer, doubtful=False) is fresh
    assert about_the_token(mode, answer, doubtful=True) is near_its_expiry


@pytest.mark.parametrize(
    ("mode", "status", "text", "own"),
    [
        ("job", 403, "<html><center>403 Forbidden</center> nginx", True),
        ("job", 400, "<html>The requested URL was rejected", True),
        ("job", 403, "MinIO user not provisioned for ana; submit a direct request first", False),
        ("job", 400, "More than one service authorize, use the owner query to select the service", False),
        ("job", 400, "Error getting oidc manager for issuer 'x'", False),
        ("job", 406, "Not Acceptable", True),
        ("job", 200, "<html><title>Request Rejected</title>", False),  # as an endpoint that is not OSCAR's
        ("job", 202, "", False),
        ("job", 302, "", False),
        ("job", 308, "", False),
        ("job", 401, "", False),
        ("job", 404, "", False),
        ("job", 407, "", False),
        ("job", 502, NO_ISSUER, False),
        ("run", 401, "", True),  # the application's looks the same
        ("run", 401, "this user isn't enrrolled on the vo: ours", False),
        ("run", 303, "", True),  # the application's too, perhaps
        ("run", 404, "", False),  # until it has been looked after
        ("run", 407, "", False),
        ("run", 400, "Error getting oidc manager for issuer 'x'", False),
    ],
)
def test_a_refusal_by_what_reads_the_body_may_be_of_one_event(
    mode: Literal["job", "run"], status: int, text: str, own: bool
) -> None:
    answer = judged(mode, reply(status, text), token=ACCESS_TOKEN)
    assert (answer.verdict, answer.perhaps_its_own) == (Verdict.REFUSED, own)


def test_another_success_than_201_says_what_oscar_would_answer() -> None:
    detail = judged("job", reply(200, "Service under maintenance", "OK")).detail
    assert detail == (
        "200 OK, but OSCAR accepts a job with 201 alone: is the endpoint OSCAR's?: Service under maintenance"
    )


@given(st.sampled_from(["job", "run"]), st.integers(100, 999), st.text(), st.booleans(), st.text())
@settings(deadline=None)
def test_every_answer_has_a_verdict(
    mode: Literal["job", "run"], status: int, text: str, idempotent: bool, token: str
) -> None:
    answer = judged(mode, reply(status, text), idempotent=idempotent, token=token)
    assert isinstance(answer.verdict, Verdict)
    assert (answer.verdict is Verdict.ACCEPTED) == (status == 201 or (mode == "run" and 200 <= status < 300))
    if mode == "job" or idempotent:
        assert answer.verdict is not Verdict.UNKNOWN
    if answer.accepted or answer.verdict in (Verdict.REJECTED, Verdict.UNKNOWN):
        assert not answer.perhaps_its_own
    elif answer.verdict is not Verdict.REFUSED:
        assert answer.perhaps_its_own


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
