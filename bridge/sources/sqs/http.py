"""aiobotocore's HTTP client with the bridge's rule for proxies, and with answers that have an end."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import HTTPClientError
from botocore.httpsession import ProxyConfiguration

from bridge.net.bodies import body_of
from bridge.net.proxies import proxy_for
from bridge.net.unanswered import why_unanswered

_LONGEST_MESSAGES = 32 << 20
"""Bytes: ten messages of 1 MiB, of which what takes four bytes may take twelve in JSON."""
_LONGEST_ANSWER = 1 << 20
"""Bytes of any other answer."""


class _Proxies(ProxyConfiguration):  # type: ignore[misc] # botocore is not typed
    def __init__(self) -> None:
        super().__init__()
        self._proxy_for = lru_cache(maxsize=16)(proxy_for)  # asked for each call, of few URLs

    def proxy_url_for(self, url: str) -> str | None:
        proxy = self._proxy_for(url)
        return None if proxy is None else str(proxy)


class HttpSession(AIOHTTPSession):  # type: ignore[misc] # aiobotocore is not typed
    """The HTTP client of one of AWS's services."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._proxy_config = _Proxies()

    async def send(self, request: Any) -> Any:
        """Send `request` and read its answer. Raises BotoCoreError."""
        request.stream_output = True  # so that it is left to us to read it
        try:
            response = await super().send(request)
        except HTTPClientError as error:
            cause = error.kwargs.get("error")
            # It shows what came.
            if type(error) is HTTPClientError and isinstance(cause, aiohttp.ClientResponseError):
                raise HTTPClientError(error=why_unanswered(cause)) from None
            raise
        has_messages = request.headers.get("X-Amz-Target") == "AmazonSQS.ReceiveMessage"
        try:
            most = _LONGEST_MESSAGES if has_messages else _LONGEST_ANSWER
            async with response.raw:  # or its connection stays taken where this is cancelled
                response._content = await body_of(response.raw, most)  # noqa: SLF001 - where it is looked for
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HTTPClientError(error=why_unanswered(error)) from error
        return response
