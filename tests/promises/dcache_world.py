"""A sandbox dCache, a whole bridge as a process, and the sandbox OSCAR; and trouble by the dice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bridge.core.identity import invocation_name
from bridge.sandbox.dcache import SandboxDcache, Upload, Version
from bridge.sandbox.oscar import SandboxOscar
from bridge.testing import until
from bridge.testing.world import plants_of
from tests.support.daemon import Daemon

ROOT = "/data/in"


class DcacheWorld:
    """One site, one OSCAR with the service `plants`, and daemons; those left are killed at the end."""

    def __init__(self, directory: Path, site: SandboxDcache, oscar: SandboxOscar) -> None:
        self.directory = directory
        self.site = site
        self.oscar = oscar
        self.daemons: list[Daemon] = []

    def configuration(self, **source: Any) -> dict[str, Any]:
        """One dCache source into `plants`; `source` are keys of it."""
        return {
            **plants_of(self.oscar),
            "sources": {
                "arrivals": {
                    "type": "dcache",
                    "endpoint": self.site.base,
                    "auth": {"type": "basic", "username": "bridge", "password": "bridge"},
                    "paths": [ROOT],
                    "request_rate": "1000/s",
                    **source,
                }
            },
            "routes": [{"from": "arrivals", "to": "plants"}],
        }

    def daemon(self, **source: Any) -> Daemon:
        """Make a daemon with a state directory of its own, not started."""
        daemon = Daemon(self.directory / f"daemon-{len(self.daemons)}", self.configuration(**source))
        self.daemons.append(daemon)
        return daemon

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()

    @staticmethod
    def job_of(version: Version) -> str:
        """The name of the job of a file's version, with `renames: ignore`."""
        return invocation_name("arrivals", f"{version.pnfs_id}:{version.size}:{version.mtime}", "plants")

    def closed(self) -> list[Version]:
        """Every file version that exists and is closed."""
        return [one for one in self.site.versions() if one.closed and one.size is not None]

    async def every_version_has_one_job(self, *, seconds: float = 60.0) -> None:
        """Return once each file version that exists and is closed by now has a job; none may have two."""
        created = self.oscar.ledger.created
        expected = {self.job_of(version): version for version in self.closed()}
        try:
            await until(lambda: all(name in created for name in reversed(expected)), seconds=seconds)
        except AssertionError:
            lost = [version for name, version in expected.items() if name not in created]
            tail = "\n".join(
                f"--- {one.file}\n{one.log.read_text()[-6000:]}" for one in self.daemons if one.log.exists()
            )
            raise AssertionError(
                f"{len(lost)} of {len(expected)} have no job, such as {lost[:5]}\n{tail}"
            ) from None
        twice = {name: count for name, count in created.items() if count > 1}
        assert not twice, twice


class Schedule:
    """Random work of users and trouble, drawn from a seed: the same seed draws the same schedule.

    `play` makes one step at a time. What the dice want and the site can't do (a rename onto itself) is left
    out, so the number of steps says how much was tried.
    """

    def __init__(self, world: DcacheWorld, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.dice = random.Random(seed)
        self.done: list[str] = []
        """What was done, for a person who reads a failure."""
        self.uploads: list[Upload] = []
        work = [
            (30, self._upload),
            (6, self._begin_upload),
            (8, self._finish_upload),
            (6, self._overwrite),
            (3, self._rewrite),
            (3, self._close_again),
            (8, self._rename_file),
            (4, self._rename_directory),
            (4, self._make_directory),
            (3, self._remove_file),
            (1, self._remove_directory),
            (2, self._move_in),
            (3, self._rename_upload),
            (4, self._rest),
        ]
        trouble = [
            (2, self._drop),
            (1, self._lose_events),
            (2, self._overflow),
            (0.7, self._forget_channels),
            (0.7, self._restart_site),
            (1, self._fail_lookups),
            (1, self._kill_a_bridge),
        ]
        # Much trouble makes the bridge list everything, which mends whatever another trouble did: so each
        # schedule has only some kinds of it.
        self._steps: list[tuple[float, Callable[[], Awaitable[str]]]] = [
            *work,
            *(one for one in trouble if self.dice.random() < 0.35),
        ]

    async def play(self, steps: int) -> None:
        """Make so many steps, then let what was begun come to its end."""
        weights, kinds = zip(*self._steps, strict=True)
        for _ in range(steps):
            (kind,) = self.dice.choices(kinds, weights)
            try:
                self.done.append(await kind())
            except (OSError, LookupError, ValueError) as error:
                self.done.append(f"{kind.__name__}: {error!r}")
        for upload in self.uploads:
            await self._end(upload)
        self.world.site.trouble.end_overflow()
        self.world.site.faults.lookup_failures = 0
        for daemon in self.world.daemons:
            if daemon.process is None:
                daemon.start()

    # Places

    def _files(self) -> list[str]:
        return [one.path for one in self.world.closed() if one.path.startswith(ROOT + "/")]

    def _directory(self) -> str:
        below = sorted({path.rpartition("/")[0] for path in self._files()} | {ROOT})
        return self.dice.choice(below)

    def _new_directory(self) -> str:
        parts = [self._directory(), *(f"d{self.dice.randrange(6)}" for _ in range(self.dice.randrange(3)))]
        return "/".join(parts[:6])

    def _new_file(self) -> str:
        return f"{self._new_directory()}/f{self.dice.randrange(200)}"

    def _file(self) -> str:
        return self.dice.choice(sorted(self._files()))

    def _data(self) -> bytes:
        return b"x" * self.dice.randrange(1, 100)

    # Work

    async def _upload(self) -> str:
        path = self._new_file()
        await self.world.site.upload(path, self._data())
        return f"upload {path}"

    async def _begin_upload(self) -> str:
        path = self._new_file()
        self.uploads.append(await self.world.site.begin_upload(path))
        return f"begin {path}"

    async def _finish_upload(self) -> str:
        upload = self.uploads.pop(self.dice.randrange(len(self.uploads)))
        await self._end(upload)
        return "finish an upload"

    async def _rename_upload(self) -> str:
        source = self.uploads[self.dice.randrange(len(self.uploads))].node.path
        destination = f"{self._directory()}/u{self.dice.randrange(200)}"
        await self.world.site.rename(source, destination)
        return f"rename unfinished {source} {destination}"

    async def _end(self, upload: Upload) -> None:
        try:
            await self.world.site.finish_upload(upload, self._data())
        except OSError as error:
            self.done.append(f"an upload could not end: {error!r}")

    async def _overwrite(self) -> str:
        path = self._file()
        await self.world.site.overwrite(path, self._data())
        return f"overwrite {path}"

    async def _rewrite(self) -> str:
        path = self._file()
        await self.world.site.rewrite(path, self._data(), closes=self.dice.randrange(1, 4))
        return f"rewrite {path}"

    async def _close_again(self) -> str:
        path = self._file()
        await self.world.site.close_again(path, self.dice.randrange(1, 4))
        return f"close again {path}"

    async def _rename_file(self) -> str:
        source, destination = self._file(), f"{self._directory()}/r{self.dice.randrange(200)}"
        await self.world.site.rename(source, destination)
        return f"rename {source} {destination}"

    async def _rename_directory(self) -> str:
        source, destination = self._directory(), f"{self._directory()}/m{self.dice.randrange(50)}"
        if source == ROOT or destination.startswith(source + "/"):
            return "rename nothing"
        await self.world.site.rename(source, destination)
        return f"rename directory {source} {destination}"

    async def _make_directory(self) -> str:
        path = self._new_directory()
        await self.world.site.mkdir(path)
        return f"mkdir {path}"

    async def _remove_file(self) -> str:
        path = self._file()
        await self.world.site.remove(path)
        return f"remove {path}"

    async def _remove_directory(self) -> str:
        path = self._directory()
        if path == ROOT:
            return "remove nothing"
        await self.world.site.remove(path)
        return f"remove directory {path}"

    async def _move_in(self) -> str:
        number = self.dice.randrange(10_000)
        await self.world.site.upload(f"/data/out/o{number}/deep/f", self._data())
        path = f"{self._directory()}/o{number}"
        await self.world.site.rename(f"/data/out/o{number}", path)
        return f"move in {path}"

    # Trouble

    async def _drop(self) -> str:
        self.world.site.trouble.drop_streams()
        return "drop the streams"

    async def _lose_events(self) -> str:
        self.world.site.trouble.drop_streams()
        self.world.site.trouble.lose_events()
        return "drop the streams and empty the rings"

    async def _overflow(self) -> str:
        path = self._directory()
        self.world.site.trouble.begin_overflow(None if self.dice.random() < 0.3 else path)
        for _ in range(3):
            self.done.append(await self._upload())
        self.world.site.trouble.end_overflow()
        return f"overflow {path}"

    async def _forget_channels(self) -> str:
        self.world.site.trouble.forget_channels()
        return "forget the channels"

    async def _restart_site(self) -> str:
        self.world.site.trouble.restart(shutdown=self.dice.random() < 0.5)
        return "restart dCache"

    async def _fail_lookups(self) -> str:
        self.world.site.faults.lookup_failures = self.dice.randrange(1, 10)
        return "fail look-ups"

    async def _kill_a_bridge(self) -> str:
        daemon = self.dice.choice(self.world.daemons)
        if daemon.process is not None:
            daemon.kill()
            self.done.append("killed a bridge")
            await self._rest()
        daemon.start()
        return "start a bridge"

    async def _rest(self) -> str:
        await asyncio.sleep(self.dice.random() * 0.5)
        return "rest"
