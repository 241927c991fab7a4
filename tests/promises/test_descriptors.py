"""Who opens connections and asks nothing."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.support.world import World

PRELUDE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
"""


async def test_half_open_requests_keep_no_event_from_its_job(world: World) -> None:
    daemon = world.daemon(prelude=PRELUDE)
    daemon.start()
    await daemon.becomes_ready()
    with ExitStack() as stack:
        for _ in range(400):
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            caller.sendall(b"GET /livez HTTP/1.1\r\n")
        await world.produce_numbers(20)
        await world.all_jobs()
        assert await daemon.metric("bridge_retries_total", service="plants", cause="no_descriptors") == 0
    world.assert_one_job_an_event()
    assert await daemon.stop() == 0
