"""A state directory with a journal, and a cluster, that questions are asked of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar
from bridge.settings import Settings
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.occurrence import version_of
from bridge.sources.dcache.rest.connection import Connection
from bridge.store.segments import COLUMNS, DIRECTORY, HEAD, escape
from bridge.why import Answer, lines, why

FILE = "runs/leaf-1.nc"
ID = "uploads/3/1042@1764500000000"
AT = 1764500001.0
"""2025-11-30 10:53:21 UTC."""


def configuration(state_dir: Path, endpoint: str = "http://127.0.0.1:1", **more: Any) -> dict[str, Any]:
    auth = {"type": "basic", "username": "oscar", "password": "sandbox"}
    return {
        "state_dir": str(state_dir),
        "clusters": {"main": {"endpoint": endpoint, "auth": auth}},
        "services": {"plants": {}},
        "sources": {"uploads": Place.kafka("127.0.0.1:1", "uploads")},
        "routes": [{"from": "uploads", "to": "plants"}],
        **more,
    }


class Place:
    """A state directory, with a configuration that names it."""

    def __init__(self, tmp_path: Path, oscar: SandboxOscar) -> None:
        self.state_dir = tmp_path / "state"
        self.state_dir.mkdir()
        self._oscar = oscar

    def settings(self, **more: Any) -> Settings:
        return Settings.model_validate(configuration(self.state_dir, self._oscar.url, **more))

    @staticmethod
    def kafka(servers: str, topic: str, **more: Any) -> dict[str, Any]:
        return {"type": "kafka", "bootstrap_servers": servers, "topics": [topic], "group_id": topic, **more}

    def journal(self, *told: dict[str, Any]) -> None:
        common = {"t": AT, "source": "uploads", "id": ID, "subject": FILE, "key": FILE}
        text = HEAD.decode()
        for line in ({**common, **each} for each in told):
            line |= {name: int(line[name] * 1000) for name in ("t", "received") if name in line}
            text += "\t".join(escape(str(line.get(name) or "")) for name in COLUMNS) + "\n"
        directory = self.state_dir / DIRECTORY
        directory.mkdir(exist_ok=True)
        (directory / "000000000001.log").write_text(text)

    async def ask(self, name: str, **more: Any) -> Answer:
        return await why(self.settings(**more), name)

    async def read(self, name: str, **more: Any) -> list[str]:
        """What a person reads."""
        return list(lines(json.loads(json.dumps(asdict(await self.ask(name, **more))))))


async def make_job(oscar: SandboxOscar, event_id: str = ID, service: str = "plants") -> str:
    name = invocation_name("uploads", event_id, service)
    (known,) = oscar.services.named(service)
    headers = {"Authorization": f"Bearer {known.token}", "X-Delegated-Job-ID": name}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{oscar.url}/job/{service}", data=b"{}", headers=headers) as answer,
    ):
        assert answer.status == 201
    return name


def event(event_id: str = ID) -> Event:
    return Event(id=event_id, source="uploads", type="t", subject=FILE, data=b"{}", attributes={"key": FILE})


def arrivals(site: SandboxDcache, **more: Any) -> dict[str, Any]:
    user, password = next(iter(site.settings.users.items()))
    return {
        "sources": {
            "arrivals": {
                "type": "dcache",
                "endpoint": site.base,
                "auth": {"type": "basic", "username": user, "password": password},
                "paths": ["/data/in"],
                **more,
            }
        },
        "routes": [{"from": "arrivals", "to": "plants"}],
    }


async def version_of_file(site: SandboxDcache, path: str) -> str:
    """The version of a file, as an event's id has it."""
    config = DcacheConfig.model_validate(arrivals(site)["sources"]["arrivals"])
    async with Connection(config) as connection:
        return version_of(path, await connection.look_up(path), with_path=False)
