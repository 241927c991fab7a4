"""What the tests of the store keep, and processes of their own that keep it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path

import pytest

from bridge.core.event import Event
from bridge.core.ports import DeadLetter, Parked
from bridge.store import Store
from bridge.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]


def event(event_id: str = "1", *, data: bytes = b"{}") -> Event:
    return Event(id=event_id, source="uploads", type="org.example.put", data=data)


def letter(
    event_id: str = "1", *, service: str = "plants", cause: str = "too_large", data: bytes = b"{}"
) -> DeadLetter:
    return DeadLetter(
        event=event(event_id, data=data), service=service, cause=cause, detail="why", attempts=1
    )


async def parked_ids(store: Store, service: str = "plants", without: Collection[int] = ()) -> list[str]:
    return [row.event.id for row in await parked(store, service, without)]


async def parked(store: Store, service: str = "plants", without: Collection[int] = ()) -> list[Parked]:
    return list(await store.parked(service, without=without, limit=1000))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def child(code: str, *arguments: str, then: str = "", wrap: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a process of its own with the names of this file and the store at hand."""
    prelude = """
        import asyncio, os, resource, sys
        from pathlib import Path
        from prometheus_client import CollectorRegistry
        from bridge.core.errors import *
        from bridge.store import *
        from bridge.telemetry.metrics import Metrics
        from tests.store.events import *
        arguments = sys.argv[1:]
    """
    program = "".join(textwrap.dedent(part) for part in (prelude, code, then))
    return subprocess.Popen(
        [*wrap, sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def on_a_tmpfs(path: Path, size: str) -> tuple[str, ...]:
    """Give what a command is wrapped in to see a small file system of its own at `path`."""
    needs_mounts()
    return ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} none {path} && exec "$@"', "sh")


def needs_mounts() -> None:
    try:
        possible = subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if possible.returncode:
        pytest.skip("this user can't mount a tmpfs")
