"""What `check` finds out about a queue, without receiving from it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence

from botocore.httpsession import get_cert_path

from bridge.core.errors import SourceLost
from bridge.core.ports import Finding, Findings, Patience
from bridge.net.proxies import proxy_for
from bridge.net.reach import reach_url
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import Queue, Throttled, Unanswered, connect
from bridge.sources.sqs.held import LONGEST_HOLD
from bridge.sources.sqs.policy import dead_letter_queue, most_receipts, number

_ALL_SECONDS = 9.0
_FEW_RECEIPTS = 3
_SHORT_VISIBILITY = 10
_LONG_VISIBILITY = 3600
_SHORT_RETENTION = 3600
_IN_FLIGHT = {False: 120_000, True: 20_000}
"""Messages in flight at most, by whether the queue is FIFO (SQS quotas)."""
_ACTIONS = "sqs:GetQueueUrl, GetQueueAttributes, ReceiveMessage, DeleteMessage and ChangeMessageVisibility"
_NO_RECEIPT = "oscar-bridge-check"
"""The receipt handle of no message."""
_SOMEWHERE_AT_AWS = "https://sqs.amazonaws.com"
"""What tells whether a proxy stands before AWS."""


async def check(config: SqsConfig, key: str, patience: Patience) -> Sequence[Finding]:
    """Look at the queue of `sources.{key}`."""
    findings = Findings(f"source {key}")
    if not await _reached(findings, key, config):
        return findings.found
    try:
        async with asyncio.timeout(_ALL_SECONDS), connect(config) as queue:
            attributes = await queue.attributes()
            findings.ok(f"{queue.place}: found, {_waiting(attributes)}")
            await _try_permissions(findings, queue)
            _judge(findings, key, attributes, patience)
    except TimeoutError:
        findings.problem(
            f"queue {config.queue}: not all was answered within {_ALL_SECONDS:g} s",
            f"does `sources.{key}.endpoint_url` (or AWS, through the proxy of the environment) answer from "
            "here?",
        )
    except Throttled as error:
        findings.warning(str(error), "wait a little, and see who calls SQS so often with this account")
    except (SourceLost, Unanswered) as error:
        findings.problem(str(error), _remedy(key, str(error)))
    return findings.found


async def _reached(findings: Findings, key: str, config: SqsConfig) -> bool:
    endpoint = config.endpoint or _SOMEWHERE_AT_AWS
    if config.endpoint is None and proxy_for(endpoint) is None:
        return True  # botocore knows where it is, and reaches it
    tls = None
    if endpoint.startswith("https:"):
        bundle = os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True)
        try:
            tls = ssl.create_default_context(cafile=bundle)
        except OSError as error:
            findings.problem(f"AWS_CA_BUNDLE: {bundle}: {error.strerror}", "correct AWS_CA_BUNDLE")
            return False
    return await reach_url(
        findings,
        endpoint,
        tls,
        address_key=f"sources.{key}.{'queue' if config.endpoint_url is None else 'endpoint_url'}",
        ca_key="AWS_CA_BUNDLE",
    )


def _remedy(key: str, trouble: str) -> str:
    """Tell what to do about what SQS, or the way to it, says (SQS API reference, Common Errors)."""
    prefix = f"sources.{key}"
    for words, remedy in (
        (
            ("does not exist, or may not be seen",),
            (
                "create the queue (for a bucket's notifications `oscar-bridge setup-s3` does it), correct "
                f"`{prefix}.queue` or `{prefix}.region` (a queue is in one region, of one account: give its "
                "URL when it is another's), or grant sqs:GetQueueUrl"
            ),
        ),
        (
            ("ExpiredToken", "RequestExpired", "has expired"),
            (
                "the session token has expired: get a new one (aws sso login, sts assume-role), or use a "
                "role that renews its own; and is this machine's clock right?"
            ),
        ),
        (
            ("InvalidClientTokenId", "UnrecognizedClient", "InvalidAccessKeyId", "not recognized"),
            f"AWS does not know the access key: correct `{prefix}.access_key_id`, or the profile",
        ),
        (
            ("SignatureDoesNotMatch", "InvalidSignature", "IncompleteSignature"),
            f"correct `{prefix}.secret_access_key`; and is this machine's clock right?",
        ),
        (("Kms", "KMS"), "grant the role or user kms:Decrypt on the queue's key, and see that it is enabled"),
        (
            ("AccessDenied", "NotAuthorized", "AuthorizationError", "not authorized"),
            (
                f"grant the role or user {_ACTIONS} on the queue, in its policy or the queue's; an encrypted "
                "queue needs kms:Decrypt too"
            ),
        ),
        (("no region",), f"set `{prefix}.region`"),
        (
            ("no AWS credentials", "redential", "profile", "Profile"),
            (
                f"set `{prefix}.profile`, or `access_key_id` with `secret_access_key_file`, or give the "
                "machine a role"
            ),
        ),
        (
            ("onnect", "no answer", "not reached", "resolve"),
            (
                f"is `{prefix}.region` an AWS region, and can its SQS endpoint be reached from here (proxy, "
                "VPC endpoint)?"
            ),
        ),
    ):
        if any(word in trouble for word in words):
            return remedy
    return f"look at `{prefix}`, and at what SQS says"


async def _try_permissions(findings: Findings, queue: Queue) -> None:
    """Try to delete, and to make visible, a message that there is none of: only permission can be lacking."""
    for action, visibility in (("sqs:DeleteMessage", None), ("sqs:ChangeMessageVisibility", 0)):
        try:
            await queue.answer([(_NO_RECEIPT, visibility)])
        except SourceLost as error:
            if "AccessDenied" in str(error) or "uthoriz" in str(error):
                findings.problem(
                    f"{action} is not allowed: {error}", f"grant the role or user {action} on it"
                )


def _waiting(attributes: Mapping[str, str]) -> str:
    waiting = attributes.get("ApproximateNumberOfMessages", "?")
    return f"about {waiting} messages waiting, {_in_flight(attributes)} in somebody's hands"


def _in_flight(attributes: Mapping[str, str]) -> int:
    return number(attributes, "ApproximateNumberOfMessagesNotVisible") or 0


def _judge(findings: Findings, key: str, attributes: Mapping[str, str], patience: Patience) -> None:
    fifo = attributes.get("FifoQueue") == "true"
    _judge_visibility(findings, key, number(attributes, "VisibilityTimeout") or 0, patience)
    _judge_redrive(findings, attributes, patience)
    retention = number(attributes, "MessageRetentionPeriod") or 0
    if retention and retention < patience.unsettled:
        findings.warning(
            f"the queue keeps messages for {retention} s, and the bridge may hold them for "
            f"{patience.unsettled:g} s before they are settled (`give_up_after`, `park`)",
            "raise the queue's MessageRetentionPeriod, let the services park, or lower `give_up_after`",
        )
    elif retention and retention < _SHORT_RETENTION:
        findings.warning(
            f"the queue keeps messages for {retention} s: what comes while the bridge is down for longer is "
            "lost",
            "raise the queue's MessageRetentionPeriod",
        )
    if _in_flight(attributes) >= 0.9 * _IN_FLIGHT[fifo]:
        findings.warning(
            f"{_in_flight(attributes)} messages are in flight, and SQS gives no more at {_IN_FLIGHT[fifo]}",
            "find who receives without deleting, or lower `max_in_flight` of all that read this queue",
        )
    if fifo:
        findings.note("a FIFO queue: of each MessageGroupId one message at a time, in order")
    if key_id := attributes.get("KmsMasterKeyId"):
        findings.note(
            f"encrypted with the KMS key {key_id}", "the role or user needs kms:Decrypt on it to receive"
        )


def _judge_visibility(findings: Findings, key: str, visibility: int, patience: Patience) -> None:
    if patience.unsettled > LONGEST_HOLD:
        findings.warning(
            f"the bridge may hold messages for {patience.unsettled:g} s, and SQS lets nobody hold one for "
            "more than 12 h: it is given back then, which counts as a receipt",
            "let the services park (`park: true`), or lower `give_up_after`",
        )
    if visibility == 0:
        findings.note("the queue's VisibilityTimeout is 0: the bridge asks for 30 s in its place")
    elif visibility < max(patience.attempt, _SHORT_VISIBILITY):
        findings.warning(
            f"the queue's VisibilityTimeout is {visibility} s, and one attempt may take {patience.attempt:g} "
            "s: the bridge puts it off all the time, and when it can't for so long, messages go to others as "
            "well",
            f"raise the queue's VisibilityTimeout above {max(patience.attempt, _SHORT_VISIBILITY):g} s, or "
            "lower the services' `timeout_seconds`",
        )
    elif visibility > _LONG_VISIBILITY:
        findings.note(
            f"the queue's VisibilityTimeout is {visibility} s: what a killed bridge had in hand comes back "
            "only then",
            "lower it to some minutes: the bridge puts it off as long as it needs",
        )


def _judge_redrive(findings: Findings, attributes: Mapping[str, str], patience: Patience) -> None:
    receipts = most_receipts(attributes)
    if receipts is None:
        findings.note("no dead-letter queue of its own: the bridge keeps its dead letters itself")
        return
    other = dead_letter_queue(attributes)
    if receipts < _FEW_RECEIPTS:
        findings.warning(
            f"after {receipts} receipts SQS moves a message to {other}, and each "
            "restart of the bridge may count as one: messages can be lost to it that no service refused",
            f"raise maxReceiveCount of the queue's RedrivePolicy to {_FEW_RECEIPTS} at least, better 10",
        )
    else:
        findings.ok(f"after {receipts} receipts a message goes to {other}")
    if not patience.parks:
        findings.warning(
            f"after {receipts} receipts a message goes to {other}, and a service with `park: false` holds "
            "messages in the queue while it is down: each restart of the bridge, and each 12 h, is a receipt",
            "let the services park (`park: true`), or take the RedrivePolicy away",
        )
