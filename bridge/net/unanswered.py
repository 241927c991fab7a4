"""Why a call over aiohttp got no answer, without what came of one: aiohttp tells all of that, cookies too."""

from __future__ import annotations

import aiohttp


def why_unanswered(error: BaseException) -> str:
    """Tell a person in our words why `error` kept an answer away, and in its own where these hold no more."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the other side closed the connection"
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, aiohttp.ClientHttpProxyError):
        return "the answer is no HTTP"
    # Without a cause it is `body_of`'s.
    if isinstance(error, aiohttp.ClientPayloadError) and error.__cause__ is not None:
        return "the answer broke off, or is no HTTP"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
