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

from tests.dashboard.reading import Query, queries
from tests.servers import debian
from tests.servers.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
NOTHING_TO_TELL = {
    "Alerts that fire: ": "none does",
    "Starts: {{instance}} started": "it has not been started again",
    "dCache: gaps and look-ups: {{source}} look-up: {{reason}}": "no look-up failed",
    "Too late for their window: {{service}} late": "no window had to be complete",
    "Made again: {{service}} {{cause}}": "no attempt failed",
    "Access tokens: {{cluster}} {{instance}}": "its OSCAR takes a password",
    "Credentials and certificates expire in: token of {{cluster}} {{instance}}": "likewise",
    "Credentials and certificates expire in: certificate of {{source}} {{instance}}": "no source shows one",
    "Credentials and certificates expire in: certificate of the HTTP port {{instance}}": "it has none",
    "Since all were looked for: {{service}} {{instance}}": "no job is active any more",
}
"""Queries whose answer is empty after that flow, and why."""


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
            waiting = list(queries())
            deadline = asyncio.get_running_loop().time() + 60
            while waiting:
                late = asyncio.get_running_loop().time() > deadline
                assert not late, [f"{query.where}: {query.legend}" for query in waiting]
                waiting = [query for query in waiting if not await is_answered(prometheus, query)]


async def is_answered(prometheus: Prometheus, query: Query) -> bool:
    """Whether there is an answer, or need not be; its series have the labels that are shown."""
    found = await prometheus.series(query.filled_in().removesuffix(" > 0"))  # which hides what is 0
    legend = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    # Not in each: a label that is empty, such as the service of what no route could place, is none.
    assert not found or any(legend <= series.keys() for series in found), (query, found)
    return bool(found) or f"{query.where}: {query.legend}" in NOTHING_TO_TELL
