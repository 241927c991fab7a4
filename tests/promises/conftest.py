"""One world a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.oscar import SandboxOscar, Settings
from tests.servers.moto import Moto
from tests.servers.tansu import Tansu
from tests.support.beds import KafkaBed, SqsBed
from tests.support.world import World


@pytest.fixture
async def world(tmp_path: Path, tansu: Tansu, unique: str) -> AsyncIterator[World]:
    """A topic of 4 partitions and a simulating OSCAR with the service `plants`."""
    await tansu.create_topic(unique, 4)
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        world = World(tmp_path, oscar, KafkaBed(unique, tansu))
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
async def running_world(tmp_path: Path, tansu: Tansu, unique: str) -> AsyncIterator[World]:
    """The same, with jobs that really run: `plants` prints its event."""
    await tansu.create_topic(unique, 1)
    async with SandboxOscar() as oscar:
        oscar.add_service("plants", 'cat "$INPUT_FILE_PATH"')
        world = World(tmp_path, oscar, KafkaBed(unique, tansu))
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
async def queue_world(tmp_path: Path, tansu: Tansu, moto: Moto, unique: str) -> AsyncIterator[World]:
    """A queue with a visibility timeout of a second and a simulating OSCAR with the service `plants`."""
    queue = await moto.create_queue(unique, VisibilityTimeout=1)
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        world = World(tmp_path, oscar, SqsBed(queue))
        try:
            yield world
        finally:
            world.close()
