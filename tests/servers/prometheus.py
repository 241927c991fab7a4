"""A real Prometheus on a free loopback port, whose time is compressed: what takes an hour takes seconds."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import yaml

from bridge.sandbox.servers import free_port
from tests.servers.process import Server

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LONG = 3600
"""Seconds above which a duration is compressed twelve times more: nobody waits for a day's part."""


def compressed(rules: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return `rules` with every duration, and what is compared with one, divided by `scale`."""

    def shorter(seconds: float) -> float:
        return seconds / scale / (12 if seconds > _LONG else 1)

    def duration(found: re.Match[str]) -> str:
        return f"{max(1, round(1000 * shorter(int(found[1]) * _UNITS[found[2]])))}ms"

    def rule(given: dict[str, Any]) -> dict[str, Any]:
        expression = re.sub(r"\b(\d+)([mhd])\b", duration, given["expr"])
        expression = re.sub(r"\b(?:900|1800|3600)\b", lambda found: f"{shorter(int(found[0]))}", expression)
        wait = {"for": re.sub(r"(\d+)([mhd])", duration, given["for"])} if "for" in given else {}
        return {**given, "expr": expression, **wait}

    return {
        "groups": [{**group, "rules": [rule(one) for one in group["rules"]]} for group in rules["groups"]]
    }


class Prometheus(Server):
    """Scrapes ports of loopback several times a second, and evaluates rules as often."""

    def __init__(self, rules: Mapping[str, Any], *, interval: float) -> None:
        super().__init__()
        self.port = free_port()
        self._targets = self.home / "targets.json"
        self.watch()
        every = f"{round(interval * 1000)}ms"
        configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {
                    "job_name": "bridge",
                    "tls_config": {"insecure_skip_verify": True},
                    "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "100ms"}],
                }
            ],
        }
        (self.home / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
        (self.home / "prometheus.yml").write_text(yaml.safe_dump(configuration))

    def watch(self, *ports: int, by_tls: Sequence[int] = ()) -> None:
        """Scrape these ports from now on, and no others."""
        groups = [
            {"targets": [f"127.0.0.1:{port}" for port in some], "labels": {"__scheme__": scheme}}
            for scheme, some in (("http", ports), ("https", by_tls))
        ]
        fresh = self._targets.with_suffix(".new")
        fresh.write_text(json.dumps(groups))
        fresh.rename(self._targets)

    def start(self) -> None:
        options = {
            "config.file": "prometheus.yml",
            "storage.tsdb.path": "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
            "query.lookback-delta": "1s",
        }
        self.run(
            ["prometheus", *(f"--{name}={value}" for name, value in options.items())],
            [self.port],
            {"PATH": os.environ["PATH"]},
        )
        while not self._is_ready():
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """Tell whether it answers queries: it listens before."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()

    async def value(self, query: str) -> float | None:
        """Return what a query of one series gives now; None for nothing."""
        results = (await self._get("query", query=query))["result"]
        return float(results[0]["value"][1]) if results else None

    async def series(self, query: str) -> list[dict[str, str]]:
        """Return the labels of each series that a query gives now; none for a lone number."""
        found = await self._get("query", query=query)
        return [{}] if found["resultType"] == "scalar" else [each["metric"] for each in found["result"]]

    async def firing(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that fire now."""
        alerts = (await self._get("alerts"))["alerts"]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    async def _get(self, what: str, **parameters: str) -> Any:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"http://127.0.0.1:{self.port}/api/v1/{what}", params=parameters) as answer,
        ):
            return (await answer.json())["data"]

    async def _until(self, alert: str, labels: Mapping[str, str], fires: bool, seconds: float) -> None:
        wanted = {"alertname": alert, **labels}.items()
        firing: list[dict[str, str]] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    firing = await self.firing()
                    if any(wanted <= each.items() for each in firing) is fires and (
                        fires or await self.value("min(min_over_time(up[1s]))") == 1
                    ):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            ends = "fires" if fires else "ends"
            raise AssertionError(f"not within {seconds:g} s: {alert} {labels} {ends}; now {firing}") from None

    async def fires(self, alert: str, *, seconds: float = 60, **labels: str) -> None:
        """Return once that alert fires."""
        await self._until(alert, labels, True, seconds)

    async def ends(self, alert: str, *, seconds: float = 60, **labels: str) -> None:
        """Return once no such alert fires, and not because of a scrape that failed on a busy machine."""
        await self._until(alert, labels, False, seconds)
