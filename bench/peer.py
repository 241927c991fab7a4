"""The Rust peer: mq-bridge from PyPI, in an environment of its own, over the same topic to the same sink.

It is a bridge of the same kind (Kafka to HTTP, at least once, a filter by expression) whose engine is
compiled. What it does not do in its figures is told in docs/performance.md.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

from bench.bare import SESSION_SECONDS, WORKERS
from bench.environments import made

VERSION = "1.2.0"
FILTER = 'size > 0 and endsWith(name, ".nc")'
"""What `bench.processes.WHEN` says: the record's key is its body's `name`."""
BATCH = 512
"""The peer's default."""
_RUN = "import json, sys, mq_bridge; mq_bridge.Route.from_config(json.loads(sys.argv[1]), 'bench').run()"


async def interpreter() -> Path:
    """Give the Python that has the peer, in a cache of the user's; install it when it is not there yet.

    Raises NotMadeError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oscar-event-bridge-bench"
    directory = cache / f"mq-bridge-{VERSION}-{sysconfig.get_python_version()}"
    installed = ("--only-binary", ":all:", f"mq-bridge=={VERSION}")
    return await made(directory, Path(sys.executable), VERSION, installed)


def command(python: Path, sink: str, kafka: tuple[str, str, str], *, batch: int, condition: str) -> list[str]:
    """Give what runs it until it is killed; `kafka` is bootstrap address, topic and group.

    In batches of 1 as many work as the bridge's lane has; those of a larger `batch` are sent one by one too,
    as many at once. Where there is a `condition`, the rest is dropped.
    """
    bootstrap, topic, group = kafka
    session = [["session.timeout.ms", str(SESSION_SECONDS * 1000)], ["auto.offset.reset", "earliest"]]
    source = {"topic": topic, "url": bootstrap, "group_id": group, "consumer_options": session}
    headers = {"Authorization": f"Bearer {'f' * 64}", "Content-Type": "application/json"}
    route = {
        "input": {"kafka": source, **({"middlewares": [{"filter": condition}]} if condition else {})},
        "output": {
            "http": {"url": f"{sink}/job/plants", "custom_headers": headers, "batch_concurrency": WORKERS}
        },
        "batch_size": batch,
        "concurrency": WORKERS if batch == 1 else 1,
    }
    return [str(python), "-c", _RUN, json.dumps(route)]
