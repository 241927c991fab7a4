"""An exchange with OSCAR: what is sent, what comes back, and whether anything may have arrived."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from yarl import URL

CONNECT_SECONDS = 10.0
EXCERPT_BYTES = 4096
"""Of the body of an answer, what is kept."""
LONGEST_LINE = 64 << 10
"""Bytes of a header line that are read: some that a proxy adds are longer than the usual 8 KiB."""
STATUS_BYTES = 13
"""Of an answer: so many tell whether it is a success."""
_SUCCESS = re.compile(rb"HTTP/1\.[01] (2[0-9][0-9])[ \r\n]")
JOB_HEADER = "X-Delegated-Job-ID"
"""Names the Job, from OSCAR 4.1.0 on (pkg/handlers/job.go, DelegationHeader)."""


class Reply(NamedTuple):
    """An answer, as far as it came and is of use."""

    status: int
    reason: str = ""
    headers: Mapping[str, str] = {}
    """By name in lower case, without those of a success."""
    beginning: bytes = b""
    """Of the body, at most `EXCERPT_BYTES`; of a 201 nothing."""


class NoReply(Exception):  # noqa: N818 - what came, not what went wrong
    """No answer came, because of `cause`."""

    sent: ClassVar[bool]
    """Whether the other side may have the request, and have acted on it."""

    def __init__(self, cause: Exception, told: str = "") -> None:
        super().__init__(told or str(cause) or type(cause).__name__)
        self.cause = cause


class NotSent(NoReply):
    """Nothing of the request was written to a connection."""

    sent = False


class AnswerLost(NoReply):
    """The request was on its way, and not even the status of an answer came."""

    sent = True


class Head:
    """The head of a POST, but for what differs from event to event."""

    __slots__ = ("_raw", "headers", "url")

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raise ValueError for a header that holds the end of a line."""
        lines = {"Host": url.host_port_subcomponent, "Accept": "*/*", **headers}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
            raise ValueError("a header holds the end of a line")
        self.url = url
        self.headers = headers
        self._raw = f"POST {url.raw_path_qs} HTTP/1.1\r\n{text}".encode()

    def encode(self, job: str, length: int, *, fresh: bool = False) -> bytes:
        """Return the head for a body of `length` bytes, which makes the Job `job` unless that is empty."""
        named = f"{JOB_HEADER}: {job}\r\n" if job else ""
        closes = "Connection: close\r\n" if fresh else ""
        return self._raw + f"{closes}{named}Content-Length: {length}\r\n\r\n".encode("ascii")


def success_in(start: bytes) -> int:
    """Return the status of an answer that begins with `start`, if that is a success; else 0.

    A success counts from its status line on, whatever is wrong with the rest: by then the other side has done
    its work.
    """
    found = _SUCCESS.match(start)
    return int(found[1]) if found else 0
