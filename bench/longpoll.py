"""Makes tansu answer a fetch when a record comes, as Apache Kafka does.

tansu lets a fetch that finds nothing wait for half of its `max_wait_time` (500 ms by default), whatever
comes meanwhile; that would be all one sees of a latency. Through this, such a fetch is asked again each
millisecond.

`python -m bench.longpoll PORT TANSU_PORT`. One connection's requests are answered in their order, which is
Kafka's rule too.
"""

from __future__ import annotations

import asyncio
import io
import struct
import sys
import time
from typing import Any

import uvloop
from aiokafka.protocol import fetch

_FETCH = 1
"""The API key, of https://kafka.apache.org/protocol#protocol_api_keys."""
_AGAIN_SECONDS = 0.001


async def main(port: int, broker: int) -> None:
    """Pass what comes at `port` on to `broker` until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", broker)

        async def ask(request: bytes) -> bytes:
            upstream_writer.write(request)
            return await _frame(upstream_reader)

        try:
            while True:
                request = await _frame(reader)
                writer.write(await _fetched(request, ask) if _is_fetch(request) else await ask(request))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            upstream_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 24)
    print("ready", flush=True)
    await server.serve_forever()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


def _is_fetch(request: bytes) -> bool:
    return int.from_bytes(request[4:6], "big") == _FETCH


async def _fetched(request: bytes, ask: Any) -> bytes:
    """Ask until there is something, or until the client's own `max_wait_time` is over."""
    version, (client_id_length,) = int.from_bytes(request[6:8], "big"), struct.unpack_from(">h", request, 12)
    at = 14 + max(0, client_id_length) + 4  # behind the client's id and the replica's
    (wait_ms,) = struct.unpack_from(">i", request, at)
    impatient = request[:at] + struct.pack(">i", 1) + request[at + 4 :]
    deadline = time.monotonic() + wait_ms / 1000
    while True:
        answer: bytes = await ask(impatient)
        if _has_something(answer, version) or time.monotonic() >= deadline:
            return answer
        await asyncio.sleep(_AGAIN_SECONDS)


def _has_something(answer: bytes, version: int) -> bool:
    decoded = getattr(fetch, f"FetchResponse_v{version}").decode(io.BytesIO(answer[8:]))
    return any(
        partition[1] or partition[-1]  # an error, or records
        for _topic, partitions in decoded.topics
        for partition in partitions
    )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
