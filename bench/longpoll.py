"""Makes tansu answer a fetch when a record comes, as Apache Kafka does.

tansu lets a fetch that finds nothing wait for half of its `max_wait_time` (500 ms by default), whatever
comes meanwhile; that would be all one sees of a latency. Through this it gets a fetch only once there is
something, as the producers come through here too.

`python -m bench.longpoll PORT TANSU_PORT`. One connection's requests are answered in their order, which is
Kafka's rule too.
"""

from __future__ import annotations

import asyncio
import io
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence

import uvloop
from aiokafka.protocol import fetch

_PRODUCE, _FETCH = 0, 1
"""API keys, of https://kafka.apache.org/protocol#protocol_api_keys."""


_TANSU_MS = 8
"""What tansu is told for `max_wait_time`. It is also the time in which it looks for records: with 1 it finds
none of many. Records that came while a fetch that found them was under way cost a vain one afterwards."""


class LongPoll:
    """Passes on what comes, to the broker at one port of loopback."""

    def __init__(self, broker: int) -> None:
        self._broker = broker
        self._produced = asyncio.Event()
        self._ends: dict[tuple[str, int], int] = {}
        """The high watermark of each partition, as the last answer told."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._broker)

        async def ask(request: bytes) -> bytes:
            upstream_writer.write(request)
            return await _frame(upstream_reader)

        try:
            while True:
                request = await _frame(reader)
                if _api_key(request) == _FETCH:
                    writer.write(await self._fetched(request, ask))
                    continue
                writer.write(await ask(request))
                if _api_key(request) == _PRODUCE:
                    self._produced.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            upstream_writer.close()

    async def _fetched(self, request: bytes, ask: Callable[[bytes], Awaitable[bytes]]) -> bytes:
        """Ask when there is something, or when the client's own `max_wait_time` is over."""
        version, (client_id_length,) = (
            int.from_bytes(request[6:8], "big"),
            struct.unpack_from(">h", request, 12),
        )
        body = 14 + max(0, client_id_length)
        wanted = getattr(fetch, f"FetchRequest_v{version}").decode(io.BytesIO(request[body:]))
        places = {
            (topic, place[0]): _offset(place, version) for topic, places in wanted.topics for place in places
        }
        if all(offset >= self._ends.get(place, 0) for place, offset in places.items()):
            try:
                async with asyncio.timeout(wanted.max_wait_time / 1000):
                    await self._produced.wait()
            except TimeoutError:
                pass
        self._produced.clear()
        answer = await ask(request[: body + 4] + struct.pack(">i", _TANSU_MS) + request[body + 8 :])
        answered = getattr(fetch, f"FetchResponse_v{version}").decode(io.BytesIO(answer[8:]))
        self._ends |= {(topic, place[0]): place[2] for topic, places in answered.topics for place in places}
        return answer


async def main(port: int, broker: int) -> None:
    """Listen at `port` until killed."""
    server = await asyncio.start_server(LongPoll(broker).serve, "127.0.0.1", port, limit=1 << 24)
    print("ready", flush=True)
    await server.serve_forever()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


def _api_key(request: bytes) -> int:
    return int.from_bytes(request[4:6], "big")


def _offset(place: Sequence[int], version: int) -> int:
    return place[2 if version >= 9 else 1]  # from 9 on behind the leader's epoch


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
