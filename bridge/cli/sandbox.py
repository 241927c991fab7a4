"""`oscar-bridge sandbox`: the bridge with stand-ins for all around it, and with nothing else."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cli.options import Commands, add
from bridge.core.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from bridge.settings import Settings

_STAND_INS = {
    "SANDBOX_OSCAR": "http://oscar.sandbox.invalid",
    "SANDBOX_KAFKA": "kafka.sandbox.invalid:9092",
    "SANDBOX_AWS": "http://aws.sandbox.invalid",
    "SANDBOX_DCACHE": "http://dcache.sandbox.invalid",
    "SANDBOX_STATE": "/sandbox.invalid",
}
"""What the sandbox sets for the bridge, with values that nothing else has."""
_ADDRESSES = {
    "kafka": ("bootstrap_servers", "SANDBOX_KAFKA"),
    "sqs": ("endpoint_url", "SANDBOX_AWS"),
    "dcache": ("endpoint", "SANDBOX_DCACHE"),
}
"""Type of a source → the key of its address, and the variable for that."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    sandbox = commands.add_parser("sandbox", help="try the bridge without an OSCAR cluster")
    sandbox_commands = sandbox.add_subparsers(metavar="COMMAND", required=True)
    told = "OSCAR, Kafka, S3, dCache and the bridge on loopback, with a few events to see it by"
    everything = add(sandbox_commands, "run", _run, told)
    everything.add_argument("--once", action="store_true", help="end when all events became jobs")


def _run(options: argparse.Namespace) -> int:
    from bridge.sandbox import demo

    refuse_real_systems(options.config)
    return demo.run(options.config, once=options.once)


def refuse_real_systems(configuration: Path) -> None:
    """Raise ConfigurationError when that file, with the environment, names any system but the sandbox's own.

    Else a bridge meant for a try would take a real broker's events, and make jobs of them.
    """
    from bridge.settings import load

    settings = load(configuration, {**os.environ, **_STAND_INS})
    if mistakes := list(_real_systems(settings, str(configuration))):
        raise ConfigurationError(mistakes)


def _real_systems(settings: Settings, place: str) -> Iterator[Mistake]:
    def unless_ours(key: str, value: object, variable: str) -> Iterator[Mistake]:
        written = ",".join(value) if isinstance(value, tuple) else str(value)
        if written != _STAND_INS[variable]:
            yield Mistake(
                place,
                key,
                f"not the sandbox's: expected ${{{variable}}}, as in config/sandbox.yaml; with real systems "
                "`oscar-bridge run` is the command",
            )

    yield from unless_ours("state_dir", settings.state_dir, "SANDBOX_STATE")
    for name, cluster in settings.clusters.items():
        yield from unless_ours(f"clusters.{name}.endpoint", cluster.endpoint, "SANDBOX_OSCAR")
    for name, source in settings.sources.items():
        if source.type in _ADDRESSES:
            key, variable = _ADDRESSES[source.type]
            yield from unless_ours(f"sources.{name}.{key}", getattr(source, key), variable)
        else:
            yield Mistake(place, f"sources.{name}.type", f"the sandbox has no `{source.type}` to read from")
