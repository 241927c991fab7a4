"""One queue over the wire: every call bounded in time, every failure one of three kinds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own, no relative of the built-in one
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    SSLError,
)
from botocore.loaders import create_loader

from bridge import __version__
from bridge.core.errors import CredentialError, SourceLost
from bridge.sources.sqs.calls import Calls
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.environment import suspects
from bridge.sources.sqs.http import HttpSession
from bridge.telemetry.logging import redact_text
from bridge.values import secret

BATCH = 10
"""Messages of one receive, entries of one batch call (SQS quotas)."""
OPEN_SECONDS = 30.0
"""To find credentials, where an instance or container may have to be asked for them, and the queue."""
CALL_SECONDS = 10.0
"""One call, beside the time for which it may be held back."""
_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_USER_AGENT = f"oscar-event-bridge/{__version__}"

_THROTTLED = frozenset(
    {
        "OverLimit",  # 120,000 messages in flight, 20,000 of a FIFO queue
        "RequestThrottled",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "SlowDown",
        "KmsThrottled",
    }
)
TRUSTED_TOO_MUCH = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What botocore raises where an answer is not SQS's, or the environment's variables are not AWS's."""
_NO_QUEUE = frozenset({"NonExistentQueue", "QueueDoesNotExist"})
_loader = cache(create_loader)
"""What reads botocore's descriptions of AWS's services from a search path, and keeps them: megabytes that
each opening of a queue would read anew, and leave behind in reference cycles."""


class Unanswered(Exception):  # noqa: N818 - a finding about one call, not an error of the bridge
    """No answer in time, no connection, or a server error: the same call may do later."""


class Throttled(Exception):  # noqa: N818 - likewise
    """SQS asks for fewer calls, or has too many messages in flight."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one entry of a batch call was not done."""

    stale: bool
    """Asking again is no use: the receipt is not valid any more."""
    reason: str


def _refusal(failed: Mapping[str, Any]) -> Refusal:
    """Read what SQS says of one entry; of one that it says nothing of, nothing is known."""
    reason = short(str(failed.get("Code", "")), str(failed.get("Message", "")))
    return Refusal(stale=bool(failed.get("SenderFault")), reason=reason or "nothing is said of it")


Entry = tuple[str, int | None]
"""A receipt handle and the seconds of its new visibility; None to delete the message."""


class Queue:
    """A queue that was found, with the client that reaches it.

    Each call raises Unanswered or Throttled when it may do later, and SourceLost when it is refused.
    """

    def __init__(self, client: Any, config: SqsConfig) -> None:
        self._client = client
        self._calls = Calls(client, _USER_AGENT)
        self._config = config
        self.place = f"queue {config.queue} in region {client.meta.region_name}" + (
            f" at {config.endpoint}" if config.endpoint is not None else ""
        )
        """For a person."""
        self.url = config.queue

    async def find(self) -> None:
        """Ask for the queue's URL, where the configuration has its name."""
        if "/" not in self.url:
            answer = await self._call(self._client.get_queue_url, QueueName=self.url)
            if not isinstance(url := answer.get("QueueUrl"), str):
                raise Unanswered(f"{self.place}: no answer of SQS's")
            self.url = url

    async def attributes(self) -> Mapping[str, str]:
        """Give the queue's attributes (GetQueueAttributes)."""
        answer = await self._call(
            self._client.get_queue_attributes, QueueUrl=self.url, AttributeNames=["All"]
        )
        attributes: Mapping[str, str] | None = answer.get("Attributes")
        if not attributes:  # every queue has some
            raise Unanswered(f"{self.place}: no answer of SQS's")
        return attributes

    async def receive(self, count: int, *, wait: int, visibility: int) -> Sequence[Mapping[str, Any]]:
        """Give up to `count` messages, after at most `wait` seconds, invisible to others for `visibility`."""
        answer = await self._call(
            partial(self._calls.call, "ReceiveMessage"),
            seconds=wait + CALL_SECONDS,
            QueueUrl=self.url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            AttributeNames=["All"],  # the name of it that every server knows
            MessageAttributeNames=["All"],
        )
        return self._objects(answer.get("Messages"))

    async def answer(
        self, entries: Sequence[Entry], *, seconds: float = CALL_SECONDS
    ) -> Mapping[int, Refusal]:
        """Delete, or change the visibility of, up to 10 messages, all the one or all the other.

        Gives those not done within `seconds` by their place in `entries`.
        """
        batch: list[dict[str, Any]] = [
            {"Id": str(at), "ReceiptHandle": receipt}
            | ({} if visibility is None else {"VisibilityTimeout": visibility})
            for at, (receipt, visibility) in enumerate(entries)
        ]
        operation = "DeleteMessageBatch" if entries[0][1] is None else "ChangeMessageVisibilityBatch"
        call = partial(self._calls.call, operation)
        answer = await self._call(call, seconds=seconds, QueueUrl=self.url, Entries=batch)
        done = {each.get("Id") for each in self._objects(answer.get("Successful"))}
        failed = {each.get("Id"): each for each in self._objects(answer.get("Failed"))}
        return {at: _refusal(failed.get(str(at), {})) for at in range(len(entries)) if str(at) not in done}

    def _objects(self, told: Any) -> Sequence[Mapping[str, Any]]:
        if not told:
            return []
        if not isinstance(told, list) or not all(isinstance(each, dict) for each in told):
            raise Unanswered(f"{self.place}: no answer of SQS's")
        return told

    async def _call(
        self,
        call: Callable[..., Coroutine[Any, Any, Mapping[str, Any]]],
        *,
        seconds: float = CALL_SECONDS,
        **parameters: Any,
    ) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                answer = await call(**parameters)
        except TimeoutError:
            raise Unanswered(f"no answer in {seconds:g} s from {self.place}") from None
        except ClientError as error:
            raise self._refused(error) from None
        except (BotoCoreError, OSError) as error:
            raise failed(error, self.place) from None
        except TRUSTED_TOO_MUCH as error:
            raise Unanswered(
                f"{self.place}: no answer of SQS's ({short(type(error).__name__, str(error))})"
            ) from error
        # A proxy's login or maintenance page: botocore takes it for an answer in which nothing is said.
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if str(headers.get("content-type", "")).startswith("text/html"):
            raise Unanswered(f"{self.place}: a web page in place of SQS's answer")
        return answer

    def _refused(self, error: ClientError) -> Exception:
        told = error.response.get("Error", {})
        code = str(told.get("Code", "")).rpartition(".")[2]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        reason = short(code, str(told.get("Message", "")))
        if code in _NO_QUEUE:
            return SourceLost(f"{self.place} does not exist, or may not be seen ({code})")
        if code in _THROTTLED or status == 429:
            return Throttled(f"{self.place}: {reason}")
        if status >= 500:
            return Unanswered(f"{self.place}: status {status}, {reason}")
        return SourceLost(f"{self.place}: {error.operation_name} refused: {reason}")


@asynccontextmanager
async def connect(config: SqsConfig) -> AsyncIterator[Queue]:
    """Give the configured queue. Raises SourceLost with the reason when it can't be reached or used."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                client = await stack.enter_async_context(closing(client_of(config, "sqs", config.endpoint)))
                queue = Queue(client, config)
                await queue.find()
        except TimeoutError:
            raise SourceLost(f"queue {config.queue}: not reached within {OPEN_SECONDS:g} s") from None
        except (BotoCoreError, ClientError, OSError) as error:  # ClientError: a role that is refused to us
            raise SourceLost(str(failed(error, f"queue {config.queue}"))) from None
        except (CredentialError, Throttled, Unanswered) as error:
            raise SourceLost(str(error)) from None
        except TRUSTED_TOO_MUCH as error:
            if not (whom := suspects(error)):
                raise
            reason = short(type(error).__name__, str(error))
            raise SourceLost(f"queue {config.queue}: {reason}{whom}") from error
        yield queue


def client_of(config: SqsConfig, service: str = "sqs", endpoint: str | None = None) -> Any:
    """Make a client of one of AWS's services with the credentials of a queue; at `endpoint`, or AWS's own."""
    # A session an opening, since it keeps the credentials that it found: those on disk may have been renewed.
    session = AioSession(profile=config.profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    # For all clients of this session: a role's credentials are asked for by others than this queue's.
    session.set_default_client_config(AioConfig(http_session_cls=HttpSession))
    return session.create_client(
        service,
        region_name=config.known_region,
        endpoint_url=endpoint,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=secret(config.secret_access_key, config.secret_access_key_file),
        aws_session_token=secret(config.session_token, config.session_token_file),
        config=AioConfig(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=config.wait_seconds + CALL_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # each caller has its own patience
            max_pool_connections=config.pollers + 2 * BATCH,
            # Not only a name: botocore makes its own anew for each call, at a tenth of the call's cost.
            user_agent=_USER_AGENT,
            # A server of somebody's own seldom has a name for each bucket.
            s3=None if endpoint is None else {"addressing_style": "path"},
        ),
    )


@asynccontextmanager
async def closing(client: Any) -> AsyncIterator[Any]:
    """Open a client, and close it within two seconds."""
    opened = await client.__aenter__()
    try:
        yield opened
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await client.__aexit__(None, None, None)


def failed(error: Exception, place: str) -> Exception:
    """Tell a failure that may pass from one that only other credentials, keys or files can mend."""
    if isinstance(error, NoRegionError):
        return SourceLost(f"{place}: no region; give `region`, or set AWS_DEFAULT_REGION")
    if isinstance(error, NoCredentialsError):
        return SourceLost(
            f"{place}: no AWS credentials, neither in the configuration nor in the environment, a profile, a "
            "web identity, the container or the instance"
        )
    reason = f"{place}: {short('', str(error) or type(error).__name__)}"
    if "No such file" in reason:  # a CA bundle, a token: botocore does not always say which
        return SourceLost(reason + suspects(error))
    passes = isinstance(error, (HTTPClientError, ConnectionError, OSError)) and not isinstance(
        error, SSLError
    )
    return Unanswered(reason) if passes else SourceLost(reason + suspects(error))


def short(code: str, text: str) -> str:
    """Give the first line only: what follows it can be the request as it was signed, with its token."""
    code = code.rpartition(".")[2]
    line = redact_text(re.split(r"[\r\n]", text.strip(), maxsplit=1)[0][:300])
    return f"{code} ({line})" if code and line else code or line
