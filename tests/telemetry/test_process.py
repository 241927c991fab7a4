"""The process's own metrics under the shipped unit, and how late the loop is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from bridge.telemetry import lag
from bridge.telemetry.metrics import Metrics

_NAMES = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}
_SHOW = """
from prometheus_client import CollectorRegistry, ProcessCollector
from bridge.telemetry.process import Process
for kind in (ProcessCollector, Process):
    registry = CollectorRegistry()
    kind(registry=registry)
    print(*(f"{sample.name}={sample.value}" for family in registry.collect() for sample in family.samples))
"""


def _shown(*become: str) -> list[dict[str, float]]:
    done = subprocess.run([*become, sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [{name: float(value) for name, value in (each.split("=") for each in line)} for line in lines]


def test_the_process_is_measured_where_proc_shows_processes_alone() -> None:
    """That is what `ProcSubset=pid` and `ProtectProc=invisible` of the unit make of it (systemd.exec(5))."""
    mount = "mount -t proc -o subset=pid,hidepid=invisible proc /proc"
    become = [
        "unshare",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "-",
    ]
    if subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace may be made here")
    theirs, ours = _shown(*become)
    assert theirs == {}, "prometheus_client's own reads /proc/stat"
    assert ours.keys() == _NAMES
    assert time.time() - ours["process_start_time_seconds"] < 60
    assert ours["process_resident_memory_bytes"] > 2**20


def test_it_tells_the_same_as_prometheus_client_where_that_tells_anything() -> None:
    theirs, ours = _shown()
    assert theirs.keys() == ours.keys() == _NAMES
    start = "process_start_time_seconds"
    assert ours[start] == pytest.approx(theirs[start], abs=2)


async def test_a_loop_that_stands_still_is_seen_to_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "_SECONDS", 0.01)
    metrics = Metrics()
    measuring = asyncio.create_task(lag.measure(metrics.loop_lag))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - that is what must not be done
    while not sum(metrics.loop_lag.counts):
        await asyncio.sleep(0.01)
    measuring.cancel()
    assert metrics.loop_lag.total > 0.15
    count = metrics.registry.get_sample_value("bridge_loop_lag_seconds_count")
    assert count == sum(metrics.loop_lag.counts)
