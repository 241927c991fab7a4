"""Who may ask more than whether the bridge is well: whoever has the token, by a name of this machine."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import structlog

from bridge.core.errors import CredentialError
from bridge.values import read_secret
from bridge.web.config import bearer_token

_FAILURES_A_SECOND = 5
_FRESH_SECONDS = 1.0
"""For how long what was read of the token's file is used: so whoever tries tokens does not keep the disk
busy."""

_log = structlog.get_logger(__name__)


class Access:
    """The token of one HTTP port: read from its file again where it is asked for, once a second at most."""

    def __init__(self, token_file: Path) -> None:
        self._file = token_file
        self._token: bytes | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._told: str | None = None
        self._failures = float(_FAILURES_A_SECOND)
        """That may still be answered as such; more come with time."""
        self._failed_at = monotonic()

    async def is_granted(self, authorization: str) -> bool:
        """Tell whether the value of an `Authorization` header has the token. Raises CredentialError."""
        token = await self._newest()
        scheme, _, given = authorization.partition(" ")
        # Whatever came: a header's other bytes are surrogates here.
        is_it = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
        return is_it and scheme.lower() == "bearer"

    def fail(self) -> bool:
        """Count a failure. Tell whether there were too many in the last second."""
        now = monotonic()
        earned = (now - self._failed_at) * _FAILURES_A_SECOND
        self._failures, self._failed_at = min(float(_FAILURES_A_SECOND), self._failures + earned), now
        if self._failures < 1:
            return True
        self._failures -= 1
        return False

    async def _newest(self) -> bytes:
        async with self._reading:
            if monotonic() - self._read_at >= _FRESH_SECONDS:
                self._token = None
                try:
                    self._token = bearer_token(await asyncio.to_thread(read_secret, self._file))
                except (CredentialError, ValueError) as error:
                    self._tell(str(error))
                else:
                    self._told = None
                self._read_at = monotonic()
            if self._token is None:
                raise CredentialError("the bridge has no token to compare with: its log tells why")
            return self._token

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            _log.error("nobody can be let in: http.token_file can't be used", error=trouble)


def is_ours(host: str, names: Collection[str]) -> bool:
    """Tell whether a `Host` header names this machine: an address, `localhost`, or one of `names`.

    A page of another site, whose name leads to this machine for a moment (DNS rebinding), does not.
    """
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket:
            return False
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    if not (port.isascii() and port.isdecimal()) and port:
        return False
    name = name.lower().removesuffix(".")
    if name == "localhost" or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
