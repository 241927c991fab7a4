"""The daemon of our own tests: forked where it can be, and with a look into its store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from bridge.store.history import Line, Needle, read
from bridge.testing import daemon
from bridge.testing.daemon import Process
from tests.servers.forks import Forked, run


class Daemon(daemon.Daemon):
    """One `oscar-bridge run`.

    It is forked from a process that has its modules, unless it is `fresh`, such as for its memory to be
    measured.
    """

    def __init__(
        self, directory: Path, configuration: dict[str, Any], prelude: str = "", *, fresh: bool = False
    ) -> None:
        super().__init__(directory, configuration, prelude)
        self.store = Path(configuration.get("state_dir", directory / "state")) / "events.sqlite3"
        self._fresh = fresh

    def launch(self) -> Process:
        if self._fresh:
            return super().launch()
        # The modules are there already, and with them what they had of it.
        prelude = f"{self.prelude}\nfrom bridge.pipeline import runner; runner.HELD_SECONDS = 1.0"
        arguments = ["run", "-c", str(self.file)]
        return Forked(arguments, out=self.log, err=self.log, environment=os.environ, prelude=prelude)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ.get("PATH", "")}
        return run([*arguments, "-c", str(self.file)], environment=environment, timeout=30)

    def noted(self, *what: str, **fields: object) -> list[Line]:
        """Lines of the journal so far with one of these words and these fields, the oldest first."""
        found = read(self.store.parent, Needle("*", "glob"), limit=1_000_000)
        return [
            line
            for line in found.lines
            if line.what in what and all(getattr(line, name) == value for name, value in fields.items())
        ]

    async def parked(self, service: str) -> int:
        """How many events wait in the store for `service`."""
        return int(await self.metric("bridge_kept_events", service=service, reason="parked"))

    def kept(self) -> list[Kept]:
        """What is in the store, in the order in which it came there."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT id, service, reason, attributes FROM kept ORDER BY number")
            return [
                Kept(event_id, service, reason, json.loads(attributes))
                for event_id, service, reason, attributes in rows
            ]


class Kept(NamedTuple):
    """A row of the store."""

    id: str
    service: str
    reason: str
    attributes: dict[str, str]
