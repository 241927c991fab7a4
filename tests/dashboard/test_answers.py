"""A real Prometheus that scraped a bridge after the sandbox's flow answers every query of the dashboard."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from tests.dashboard.reading import queries
from tests.servers import debian
from tests.servers.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
NOTHING_TO_TELL = {
    "Alerts that fire": "none does",
    "Credentials and certificates expire in": "its OSCAR takes a password",
    "Access tokens": "likewise",
    "Since all were looked for": "no job is active any more",
}
"""Panels that are empty after that flow, and why. Those whose queries end in `> 0` may be so too."""

FLOW_IS_OVER = (
    "min(count_over_time(bridge_job_run_seconds_count[5m])) > 2 "
    "and min(count_over_time(bridge_windows_closed_total[5m])) > 2"
)
"""A rate takes two samples, and the families of jobs and windows begin with the first of either."""


def configuration(directory: Path) -> Path:
    """Write the sandbox's own, with jobs that are followed, a merge, and a route that can't be evaluated."""
    text = (ROOT / "config" / "sandbox.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    document["services"]["plants"]["track"] = True
    document["routes"] += [
        {"from": "uploads", "when": 'data.size > "many"', "to": "leaves"},
        {"from": "uploads", "to": "scans", "merge": {"window": "1s"}},
    ]
    file = directory / "sandbox.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


@asynccontextmanager
async def sandbox(directory: Path) -> AsyncIterator[int]:
    """Run it until its flow is over, and give the bridge's HTTP port while it runs on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "sandbox", "run", "-c", str(configuration(directory))),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", "")},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(90):
            said = b""
            while b"Ctrl-C ends it" not in said:
                line = await process.stdout.readline()
                assert line, said.decode()
                said += line
        found = re.search(rb"^bridge   http://127\.0\.0\.1:(\d+)", said, re.MULTILINE)
        assert found is not None
        yield int(found[1])
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.communicate()


@pytest.mark.prove
async def test_every_query_is_answered(tmp_path: Path) -> None:
    debian.need("prometheus")
    async with sandbox(tmp_path) as port:
        with Prometheus({"groups": []}, interval=0.2) as prometheus:
            prometheus.watch(port)
            async with asyncio.timeout(60):
                while not await prometheus.value(FLOW_IS_OVER):
                    await asyncio.sleep(0.1)
            empty = []
            for query in queries():
                found = await prometheus.series(query.filled_in())
                legend = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
                assert all(legend <= series.keys() for series in found), (query, found)
                if not found and query.where not in NOTHING_TO_TELL and "> 0" not in query.expr:
                    empty.append(f"{query.where}: {query.legend}")
            assert not empty
