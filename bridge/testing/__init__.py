"""The promises of a source as tests: `pip install 'oscar-event-bridge[testing]'`, see docs/write-a-source.md.

A `Bed` is one upstream for one test. `SourcePromises` and `BridgePromises` are for every source;
`UnreadablePromises`, `NetworkPromises` and `RestartPromises` are for those whose upstream can do what they
need. Subclass them in a test module that has a fixture `bed`. Nothing of the daemon imports this.
"""

import pytest

# Before they are imported: so that a failed assertion tells its values.
pytest.register_assert_rewrite(
    *(f"bridge.testing.{name}" for name in ("beds", "daemon", "hands", "promises", "world"))
)

from bridge.testing.beds import Bed, ProxiedBed, keeping
from bridge.testing.daemon import Daemon
from bridge.testing.hands import Hands, Room, opened, settle
from bridge.testing.promises import (
    BridgePromises,
    NetworkPromises,
    RestartPromises,
    SourcePromises,
    UnreadablePromises,
)
from bridge.testing.proxy import Proxy
from bridge.testing.waiting import until
from bridge.testing.world import World

__all__ = [
    "Bed",
    "BridgePromises",
    "Daemon",
    "Hands",
    "NetworkPromises",
    "ProxiedBed",
    "Proxy",
    "RestartPromises",
    "Room",
    "SourcePromises",
    "UnreadablePromises",
    "World",
    "keeping",
    "opened",
    "settle",
    "until",
]
