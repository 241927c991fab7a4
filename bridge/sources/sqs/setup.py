"""`oscar-bridge setup-s3`: a bucket that tells a queue of its new objects, planned first and done then.

What it makes is known again: the queue by a tag, its permission by a Sid, the notification by its Id. Nothing
else is changed or taken away (https://docs.aws.amazon.com/AmazonS3/latest/userguide/EventNotifications.html).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from bridge.core.errors import BridgeError
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import (
    CALL_SECONDS,
    OPEN_SECONDS,
    TRUSTED_TOO_MUCH,
    client_of,
    closing,
    failed,
    short,
)
from bridge.sources.sqs.environment import suspects
from bridge.sources.sqs.policy import number

TAG = "oscar-event-bridge"
"""Of a queue that this made."""
_KEPT_SECONDS = 14 * 86400
"""How long such a queue keeps a message: the longest there is, for a bridge that is away."""
_UNTIL_VALID = (2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries while S3 does not see yet that it may send: a policy holds within a minute."""
_OTHERS = {"TopicConfigurations": "TopicArn", "LambdaFunctionConfigurations": "LambdaFunctionArn"}
_NO_QUEUE = ("NonExistentQueue", "QueueDoesNotExist")
_LACKING = re.compile("AccessDenied|[Uu]nauthorized|NotAuthorized|AuthorizationError")
_ACTIONS = {
    "GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "PutBucketNotificationConfiguration": "s3:PutBucketNotification",
    "GetBucketLocation": "s3:GetBucketLocation",
    "GetCallerIdentity": "sts:GetCallerIdentity",
}
"""The IAM action of an operation, where it is not SQS's of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which objects of which bucket a queue should hear of."""

    bucket: str
    prefix: str = ""
    suffix: str = ""
    events: tuple[str, ...] = ("s3:ObjectCreated:*",)
    s3_endpoint: str | None = None
    """Where S3 is; by default where SQS is, if that is not AWS."""
    remove: bool = False
    """Take away what an earlier wish for this queue and bucket has made."""


@dataclass(frozen=True, slots=True)
class Change:
    """One call that makes a change, and how it is told."""

    lines: tuple[str, ...]
    service: str
    operation: str
    parameters: Mapping[str, Any]


@dataclass(slots=True)
class Plan:
    """What is there, and what would change: lines for a person, and the calls."""

    lines: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Begin with one thing."""
        self.lines.append(text)

    def keep(self, text: str) -> None:
        """Tell what stays as it is."""
        self.lines.append(f"  {text}")

    def change(self, service: str, operation: str, *lines: str, **parameters: Any) -> None:
        """Plan a call."""
        self.lines += lines
        self.changes.append(Change(lines, service, operation, parameters))


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What there is by now."""

    account: str
    partition: str
    region: str
    queue_url: str | None
    attributes: Mapping[str, str]
    tags: Mapping[str, str]
    notification: Mapping[str, Any]


class Aws:
    """Calls, each bounded in time and with errors that name what lacks."""

    def __init__(self, clients: Mapping[str, Any]) -> None:
        self._clients = clients

    @property
    def region(self) -> str:
        """The region of the queue."""
        return str(self._clients["sqs"].meta.region_name)

    async def call(self, service: str, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """Make one call. Raise BridgeError, and ClientError for what is refused not for want of a right."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer: Mapping[str, Any] = await getattr(self._clients[service], operation)(**parameters)
        except TimeoutError:
            raise BridgeError(f"{service}: no answer in {CALL_SECONDS:g} s to {operation}") from None
        except ClientError as error:
            if not _LACKING.search(_code(error)):
                raise
            action = _ACTIONS.get(error.operation_name, f"sqs:{error.operation_name}")
            told = error.response.get("Error", {})
            reason = short(str(told.get("Code", "")), str(told.get("Message", "")))
            whose = ", on a bucket of the same account" if service == "s3" else ""
            raise BridgeError(f"{action} is not allowed to this user or role{whose}: {reason}") from None
        except (BotoCoreError, OSError) as error:
            raise BridgeError(str(failed(error, service))) from None
        except (*TRUSTED_TOO_MUCH, ResponseParserError) as error:
            reason = short(type(error).__name__, str(error))
            raise BridgeError(f"{service}: no answer of AWS's ({reason}){suspects(error)}") from error
        return answer


@asynccontextmanager
async def connect(config: SqsConfig, wish: Wish) -> AsyncIterator[Aws]:
    """Give the clients that are needed. Raises BridgeError."""
    own = config.endpoint_url  # a queue's URL at AWS is no address of S3
    if own is not None and (urlsplit(own).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        own = None
    endpoints = {"sqs": config.endpoint, "s3": wish.s3_endpoint or own, "sts": own}
    async with AsyncExitStack() as stack:
        clients = {}
        for service, endpoint in endpoints.items():
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    opening = closing(client_of(config, service, endpoint))
                    clients[service] = await stack.enter_async_context(opening)
            except TimeoutError:
                raise BridgeError(f"{service}: no credentials within {OPEN_SECONDS:g} s") from None
            except (BotoCoreError, OSError) as error:
                raise BridgeError(str(failed(error, service))) from None
            except TRUSTED_TOO_MUCH as error:
                reason = short(type(error).__name__, str(error))
                raise BridgeError(f"{service}: {reason}{suspects(error)}") from error
        yield Aws(clients)


async def look(aws: Aws, config: SqsConfig, wish: Wish) -> There:
    """Ask for all that is there; changes nothing. Raises BridgeError."""
    try:
        return await _look(aws, config, wish)
    except LookupError as error:  # a web page, in which botocore finds nothing of what it looks for
        raise BridgeError(f"no answer of AWS's: it has no {error}") from error


async def _look(aws: Aws, config: SqsConfig, wish: Wish) -> There:
    caller = await aws.call("sts", "get_caller_identity")
    account, partition = str(caller["Account"]), str(caller["Arn"]).split(":")[1]
    await _refuse_another_region(aws, wish, account)
    attributes: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    url: str | None = config.queue
    try:
        if "/" not in config.queue:
            url = (await aws.call("sqs", "get_queue_url", QueueName=url))["QueueUrl"]
        attributes = (await aws.call("sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=["All"]))[
            "Attributes"
        ]
        tags = (await aws.call("sqs", "list_queue_tags", QueueUrl=url)).get("Tags") or {}
    except ClientError as error:
        if not _code(error).endswith(_NO_QUEUE):
            raise _told(error) from None
        url = None
    try:
        found = await aws.call(
            "s3", "get_bucket_notification_configuration", Bucket=wish.bucket, ExpectedBucketOwner=account
        )
    except ClientError as error:
        raise _told(error) from None
    return There(
        account=account,
        partition=partition,
        region=aws.region,
        queue_url=url,
        attributes=attributes,
        tags=tags,
        notification={key: value for key, value in found.items() if key != "ResponseMetadata"},
    )


async def _refuse_another_region(aws: Aws, wish: Wish, account: str) -> None:
    """S3 notifies queues of the bucket's own region alone."""
    try:
        told = await aws.call("s3", "get_bucket_location", Bucket=wish.bucket, ExpectedBucketOwner=account)
    except ClientError as error:
        raise _told(error) from None
    place = told.get("LocationConstraint") or "us-east-1"
    region = "eu-west-1" if place == "EU" else place
    if region != aws.region:
        raise BridgeError(
            f"bucket {wish.bucket} is in region {region}, and the queue in {aws.region}: S3 notifies only "
            "queues of the bucket's own region"
        )


def plan(there: There, config: SqsConfig, wish: Wish) -> Plan:
    """Find what would change. Raises BridgeError for what S3 or SQS would refuse."""
    name = config.queue.rpartition("/")[2]
    if name.endswith(".fifo"):
        raise BridgeError(f"queue {name}: S3 sends to no FIFO queue")
    made = Plan()
    arn = there.attributes.get("QueueArn") or (
        f"arn:{there.partition}:sqs:{there.region}:{there.account}:{name}"
    )
    notified = f"{TAG}-{name}"
    permission = f"OscarEventBridge{sha256(wish.bucket.encode()).hexdigest()[:12]}"
    statement = {
        "Sid": permission,
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": f"arn:{there.partition}:s3:::{wish.bucket}"},
            "StringEquals": {"aws:SourceAccount": there.account},
        },
    }
    place = f"queue {name} in {there.region}, account {there.account}"
    if wish.remove:
        _forget_notification(made, there, wish, notified)
        _leave_queue(made, there, place, permission)
        return made
    _make_queue(made, there, place, config.queue, name)
    _permit(made, there, wish, statement)
    _notify(made, there, wish, notified, arn)
    return made


def _make_queue(made: Plan, there: There, place: str, queue: str, name: str) -> None:
    made.title(place)
    if there.queue_url is None:
        if "/" in queue and there.account not in queue.split("/"):
            raise BridgeError(f"queue {queue} is not there, and only its own account can make it")
        made.change(
            "sqs",
            "create_queue",
            f"+ make it: keeps messages for {_KEPT_SECONDS // 86400} d, tag {TAG}",
            QueueName=name,
            Attributes={"MessageRetentionPeriod": str(_KEPT_SECONDS)},
            tags={TAG: "setup-s3"},
        )
        return
    made.keep(f"is there, {'made by this command' if TAG in there.tags else 'and stays as it is'}")
    if key := there.attributes.get("KmsMasterKeyId"):
        made.keep(
            f"is encrypted with the KMS key {key}: its key policy must let s3.amazonaws.com use it "
            "(kms:GenerateDataKey, kms:Decrypt)"
        )


def _policy(there: There) -> dict[str, Any]:
    text = there.attributes.get("Policy") or ""
    try:
        policy = json.loads(text) if text else {"Version": "2012-10-17", "Statement": []}
        statements = policy["Statement"]
    except (LookupError, RecursionError, TypeError, ValueError):
        raise BridgeError("the queue's policy is no policy of IAM's: correct it first") from None
    return {**policy, "Statement": statements if isinstance(statements, list) else [statements]}


def _others(policy: Mapping[str, Any], sid: str) -> list[Any]:
    return [each for each in policy["Statement"] if not isinstance(each, dict) or each.get("Sid") != sid]


def _permit(made: Plan, there: There, wish: Wish, statement: Mapping[str, Any]) -> None:
    made.title("policy of the queue: who may send")
    policy = _policy(there)
    others = _others(policy, statement["Sid"])
    if others:
        made.keep(f"{_counted(len(others), 'statement')} of others' stays")
    told = f"{statement['Sid']}: bucket {wish.bucket} of account {there.account}"
    if statement in policy["Statement"]:
        made.keep(told)
        return
    lines = [f"+ {told}"]
    if len(others) < len(policy["Statement"]):
        lines.insert(0, f"- {statement['Sid']} as it is now")
    _set_policy(made, there, policy, [*others, statement], *lines)


def _set_policy(
    made: Plan, there: There, policy: Mapping[str, Any], statements: Sequence[Any], *lines: str
) -> None:
    text = json.dumps({**policy, "Statement": statements}) if statements else ""
    made.change("sqs", "set_queue_attributes", *lines, QueueUrl=there.queue_url, Attributes={"Policy": text})


def _notify(made: Plan, there: There, wish: Wish, notified: str, arn: str) -> None:
    rules = [
        {"Name": name, "Value": value}
        for name, value in (("prefix", wish.prefix), ("suffix", wish.suffix))
        if value
    ]
    entry: dict[str, Any] = {"Id": notified, "QueueArn": arn, "Events": list(wish.events)}
    if rules:
        entry["Filter"] = {"Key": {"FilterRules": rules}}
    made.title(f"notifications of bucket {wish.bucket}")
    others = [each for each in _entries(there.notification) if each.get("Id") != notified]
    for other in others:
        made.keep(f"{_told_entry(other)} stays")
        if _overlap(other, entry):
            raise BridgeError(
                f"bucket {wish.bucket} notifies of the same objects already: {_told_entry(other)}; S3 allows "
                "no two of one event that overlap: give a --prefix or --suffix of its own, or have that one "
                "go to an SNS topic that this queue subscribes to"
            )
    ours = [each for each in there.notification.get("QueueConfigurations", ()) if each.get("Id") == notified]
    if [_plain(each) for each in ours] == [_plain(entry)]:
        made.keep(_told_entry(entry))
        return
    lines = [*(f"- {_told_entry(each)}" for each in ours), f"+ {_told_entry(entry)}"]
    _put_notification(made, there, wish, notified, [entry], *lines)


def _forget_notification(made: Plan, there: There, wish: Wish, notified: str) -> None:
    made.title(f"notifications of bucket {wish.bucket}")
    for each in _entries(there.notification):
        if each.get("Id") != notified:
            made.keep(f"{_told_entry(each)} stays")
    ours = [each for each in there.notification.get("QueueConfigurations", ()) if each.get("Id") == notified]
    if ours:
        _put_notification(made, there, wish, notified, [], *(f"- {_told_entry(each)}" for each in ours))
    else:
        made.keep(f"has none by the Id {notified}")


def _put_notification(
    made: Plan, there: There, wish: Wish, notified: str, ours: list[Mapping[str, Any]], *lines: str
) -> None:
    queues = there.notification.get("QueueConfigurations", ())
    others = [each for each in queues if each.get("Id") != notified]
    made.change(
        "s3",
        "put_bucket_notification_configuration",
        *lines,
        Bucket=wish.bucket,
        ExpectedBucketOwner=there.account,
        NotificationConfiguration={**there.notification, "QueueConfigurations": [*others, *ours]},
    )


def _leave_queue(made: Plan, there: There, place: str, permission: str) -> None:
    made.title(place)
    if there.queue_url is None:
        made.keep("is not there")
        return
    policy = _policy(there)
    others = _others(policy, permission)
    held = sum(
        number(there.attributes, f"ApproximateNumberOfMessages{state}") or 0
        for state in ("", "NotVisible", "Delayed")
    )
    if TAG in there.tags and not others and not held:
        made.change("sqs", "delete_queue", "- the queue, which is empty", QueueUrl=there.queue_url)
        return
    if TAG not in there.tags:
        made.keep(f"stays: it has no tag {TAG}, so it was not made by this command")
    elif others:
        made.keep(f"stays: its policy has {_counted(len(others), 'statement')} of others'")
    else:
        made.keep(f"stays: about {held} messages are in it; once the bridge has read them, do this again")
    if len(others) < len(policy["Statement"]):
        _set_policy(made, there, policy, others, f"- {permission} in its policy")


def _entries(notification: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in ("QueueConfigurations", *_OTHERS):
        yield from notification.get(kind, ())


def _told_entry(entry: Mapping[str, Any]) -> str:
    goal = next((str(entry[key]) for key in ("QueueArn", *_OTHERS.values()) if key in entry), "?")
    prefix, suffix = _affixes(entry)
    affixes = "".join(
        f", {name} {value}" for name, value in (("prefix", prefix), ("suffix", suffix)) if value
    )
    return f"{entry.get('Id', '(no Id)')}: {', '.join(entry['Events'])}{affixes} → {goal}"


def _affixes(entry: Mapping[str, Any]) -> tuple[str, str]:
    rules = entry.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    found = {str(rule["Name"]).lower(): str(rule["Value"]) for rule in rules}
    return found.get("prefix", ""), found.get("suffix", "")


def _plain(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an entry without what S3 writes otherwise: the order of events and rules, the case of names."""
    return entry.get("Id"), entry["QueueArn"], sorted(entry["Events"]), _affixes(entry)


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether S3 would take two entries for ambiguous: an event, a prefix and a suffix in common."""
    events = any(
        fnmatchcase(mine, yours) or fnmatchcase(yours, mine)
        for mine in one["Events"]
        for yours in other["Events"]
    )
    (prefix, suffix), (other_prefix, other_suffix) = _affixes(one), _affixes(other)
    prefixes = prefix.startswith(other_prefix) or other_prefix.startswith(prefix)
    suffixes = suffix.endswith(other_suffix) or other_suffix.endswith(suffix)
    return events and prefixes and suffixes


async def apply(aws: Aws, made: Plan) -> AsyncIterator[Change]:
    """Make the changes one after the other, and give each once it is made. Raises BridgeError."""
    url: str | None = None
    for change in made.changes:
        parameters = dict(change.parameters)
        if "QueueUrl" in parameters and parameters["QueueUrl"] is None:
            parameters["QueueUrl"] = url
        answer = await _make(aws, change, parameters)
        url = answer.get("QueueUrl", url)
        yield change


async def _make(aws: Aws, change: Change, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    for pause in (*_UNTIL_VALID, None):
        try:
            return await aws.call(change.service, change.operation, **parameters)
        except ClientError as error:
            if pause is None or "Unable to validate" not in str(error):
                raise _told(error) from None
        await asyncio.sleep(pause)
    raise AssertionError


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _told(error: ClientError) -> BridgeError:
    told = error.response.get("Error", {})
    return BridgeError(f"{error.operation_name}: {short(_code(error), str(told.get('Message', '')))}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
