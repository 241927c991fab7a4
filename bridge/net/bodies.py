"""What others answer, as far as it has an end that fits into memory."""

from __future__ import annotations

import aiohttp


async def body_of(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body of `response`. Raises aiohttp.ClientPayloadError when it has more than `most` bytes."""
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > most:
            response.close()
            raise aiohttp.ClientPayloadError(f"the answer has more than {most} bytes")
    return bytes(raw)
