"""A name server that does not answer, for some names."""

from __future__ import annotations

from yarl import URL

from tests.support.world import World

PRELUDE = """
import socket, threading
real = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if flags & socket.AI_NUMERICHOST or not isinstance(host, str) or "." not in host:
        return real(host, port, family, type, proto, flags)
    if host == "oscar.test":
        return real("127.0.0.1", port, family, type, proto, flags)
    threading.Event().wait()  # for ever
socket.getaddrinfo = getaddrinfo
"""


async def test_names_nobody_answers_for_keep_no_event_from_a_cluster_that_can_be_found(world: World) -> None:
    configuration = world.configuration()
    main = configuration["clusters"]["main"]
    main["endpoint"] = f"http://oscar.test:{URL(world.oscar.url).port}"
    for number in range(4):
        configuration["clusters"][f"away{number}"] = {**main, "endpoint": f"http://away{number}.test"}
        configuration["services"][f"away{number}"] = {"cluster": f"away{number}"}
        source = world.source(bootstrap_servers=f"kafka{number}.test:9092", group_id=f"g{number}")
        configuration["sources"][f"away{number}"] = source
        configuration["routes"].append({"from": f"away{number}", "to": f"away{number}"})
    daemon = world.daemon(configuration, PRELUDE)
    daemon.start()
    await world.produce_numbers(3)
    await world.all_jobs()
    world.assert_one_job_an_event()
    assert await daemon.stop() == 0
