"""What every source promises, on its own server and through a proxy that can cut."""

from __future__ import annotations

import pytest

from bridge.testing import (
    BridgePromises,
    NetworkPromises,
    RestartPromises,
    SourcePromises,
    UnreadablePromises,
)
from tests.support.world import World


class TestSource(SourcePromises):
    """Of each by itself."""


class TestBridge(BridgePromises):
    """Of each in a whole bridge."""

    world_type = World


class TestUnreadable(UnreadablePromises):
    """Of each that may meet what it can't read, which is all of them."""

    world_type = World


class TestNetwork(NetworkPromises):
    """Of each behind a network."""

    world_type = World


@pytest.mark.ends_its_server
@pytest.mark.parametrize(
    "bed",
    [
        "amqp",
        pytest.param("rabbitmq", marks=pytest.mark.prove),  # by the same links as the one before
        "stomp-rabbitmq",
        "stomp-activemq",
        "dcache",
    ],
    indirect=True,
)
class TestRestart(RestartPromises):
    """Of each whose server here keeps its events on a disk."""

    world_type = World
