"""What a bridge with much to tell answers to its page: many services and dead letters, hostile names."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

HOSTILE = ("<script>window.hacked = 1</script>", '"><img src=x onerror="window.hacked = 1">')
"""As a Kafka key, an S3 key or an answer of OSCAR may be."""
CAUSES = {
    "rejected": "413 Request Entity Too Large: the event has 262,144 bytes, OSCAR takes 131,065",
    "job_failed": "the job's pod ended with exit status 1: OSError: [Errno 28] No space left on device",
    "attempts": "500 after 8 attempts: " + HOSTILE[0],
}


class FakeBridge:
    """Answers the questions and commands of the page; `commands` has those that came, in their order."""

    def __init__(self, *, services: int = 4, dead_letters: int = 7, calm: bool = False) -> None:
        self.calm = calm
        self.commands: list[Mapping[str, Any]] = []
        self.queued = 2
        self.held: asyncio.Event | None = None
        """What each answer waits for."""
        self.answered = asyncio.Event()
        """Set by an answer that waited."""
        names = ["plants", "floods", "satellite-tiles", "whale-calls"]
        self.services = (names + [f"service-{n:02}" for n in range(len(names), services)])[:services]
        self.limits = {(key, "concurrency"): "16" for key in self.services} | {
            (key, "rate"): "none" for key in self.services
        }
        self.paused: set[tuple[str, str]] = set()
        now = time.time()
        causes = list(CAUSES.items())
        self.letters = [
            {
                "number": n + 1,
                "source": "uploads",
                "id": f"uploads/{n % 4}/{n}@{1_764_500_000_000 + n}",
                "subject": HOSTILE[n % 2] if n % 5 == 0 else f"/data/in/2026/station 7/leaf-{n}.nc",
                "service": self.services[n % min(3, len(self.services))],
                "cause": causes[n % 3][0],
                "detail": causes[n % 3][1],
                "attempts": 1 + n % 8,
                "first_attempt": now - 4000 - n,
                "last_attempt": now - 1000 - n,
                "kept_at": now - 1000 - dead_letters + n,
                "bytes": 812,
            }
            for n in range(0 if calm else dead_letters)
        ]

    async def command(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer as a bridge does over its socket."""
        asked = {
            "status": self.status,
            "history": self.history,
            "events": self.events,
            "dead-letters": self.dead_letters,
            "dead-letter": self.dead_letter,
            "parked": self.parked,
        }
        if self.held is not None:
            await self.held.wait()
            self.answered.set()
        do = document["do"]
        if do in asked:
            return asked[do](document)
        self.commands.append(document)
        return self.change(document)

    def change(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        do = command["do"]
        if do in ("replay", "discard"):
            meant = {letter["number"] for letter in self.chosen(command)}
            self.letters = [letter for letter in self.letters if letter["number"] not in meant]
            return {"changed": len(meant), "refused": {}}
        if do == "bury":
            return {"changed": len(command["numbers"]), "refused": {}}
        part = command["kind"], command["key"]
        if do == "pause":
            self.paused.add(part)
        elif do == "resume":
            self.paused.discard(part)
        else:
            for name, value in command.get("limits", {}).items():
                if name == "rate" and "/" not in value:
                    raise ValueError(f"rate: expected a rate such as 10/s, found {value!r}")
                self.limits[command["key"], name] = value
        return {"rows": []}

    def chosen(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            letter
            for letter in self.letters
            if (not asked.get("numbers") or letter["number"] in asked["numbers"])
            and asked.get("service") in (None, "", letter["service"])
            and asked.get("cause") in (None, "", letter["cause"])
            and letter["kept_at"] < asked.get("kept_before", math.inf)
            and asked.get("text", "") in f"{letter['subject']} {letter['id']} {letter['detail']}"
        ]

    def dead_letters(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        found = self.chosen(asked)[::-1]
        before = asked.get("before")
        rest = [letter for letter in found if before is None or letter["number"] < before]
        page = rest[: asked.get("limit", 50)]
        return {
            "total": len(found),
            "letters": page,
            "next": page[-1]["number"] if len(rest) > len(page) else None,
            "now": time.time(),
        }

    def dead_letter(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        (letter,) = (each for each in self.letters if each["number"] == asked["number"])
        return {**letter, "data": f'{{"name": "{HOSTILE[1]}", "size": 2048}}'}

    def parked(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.calm:
            return {"total": 0, "letters": [], "next": None}
        now = time.time()
        letters = [
            {
                "number": 90_000 + n,
                "source": "bucket",
                "id": f"{n:08x}-7d1f-4f0c-9a55-b4d7a2f1c001",
                "subject": f"scans/2026/tile {n}.tiff",
                "service": "floods" if n else "not-configured-any-more",
                "reason": "parked",
                "attempts": 2 if n == 0 else 0,
                "first_attempt": now - 1500 if n == 0 else None,
                "kept_at": now - 1440 + n,
                "bytes": 1440,
            }
            for n in range(50)
        ]
        return {"total": 1240, "letters": letters, "next": 90_049}

    def events(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        now = time.time()
        begins = now - 9 * 86400
        if "leaf" not in asked["query"]:
            detail = "not read yet: 90 records before it" + HOSTILE[1]
            still = {"source": "uploads", "whereabouts": "there", "detail": detail}
            upstream = [still] if "waits" in asked["query"] else []
            nothing = {"events": [], "more": False, "upstream": upstream, "notes": []}
            return {"query": asked["query"], "begins": begins, **nothing}
        job = "plant-classification-5c1f0e9b7a"
        line = {"source": "uploads", "id": "uploads/2/4711@1764500000123"}
        return {
            "query": asked["query"],
            "begins": begins,
            "events": [
                {
                    **line,
                    "subject": f"/data/in/{asked['query']}",
                    "key": HOSTILE[0],
                    "story": [
                        {
                            "t": now - 900,
                            "what": "failed",
                            "service": "plants",
                            "cause": "unavailable",
                            "detail": "503 Service Unavailable: " + HOSTILE[1],
                            **line,
                        },
                        {"t": now - 840, "what": "parked", "service": "plants", **line},
                        {
                            "t": now - 300,
                            "what": "accepted",
                            "service": "plants",
                            "job": job,
                            "attempts": 3,
                            **line,
                        },
                        {
                            "t": now - 60,
                            "what": "ended",
                            "service": "plants",
                            "job": job,
                            "cause": "succeeded",
                            **line,
                        },
                    ],
                    "fates": [
                        {
                            "service": "plants",
                            "fate": "succeeded",
                            "detail": None,
                            "job": job,
                            "status": "Succeeded",
                        },
                        {
                            "service": "whale-calls",
                            "fate": "filtered",
                            "detail": 'routes[2]: subject.endsWith(".wav") is false',
                            "job": None,
                            "status": None,
                        },
                    ],
                }
            ],
            "more": False,
            "upstream": [],
            "notes": [],
        }

    def history(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        points = min(int(asked.get("hours", 6) * 60), 360)
        outage = range(points - 24, points)

        def wave(scale: float, shift: float) -> list[int]:
            heights = (1.4 + math.sin(n / 23 + shift) + 0.3 * math.sin(n / 3) for n in range(points))
            return [int(scale * height) for height in heights]

        services = {}
        for at, key in enumerate(self.services):
            accepted = wave(180 / (at + 1), at)
            shut = key == "floods" and not self.calm
            if shut:
                accepted = [0 if n in outage else value for n, value in enumerate(accepted)]
            dead = sum(letter["service"] == key for letter in self.letters)
            services[key] = {
                "accepted": accepted,
                "failed": [7 if shut and n in outage else 0 for n in range(points)],
                "parked": [(n - outage.start) * 52 if shut and n in outage else 0 for n in range(points)],
                "dead_letters": [dead if n >= points - 16 else 0 for n in range(points)],
            }
        sources = {
            "uploads": {"received": wave(300, 0)},
            "bucket": {"received": wave(140, 2)},
            "arrivals": {"received": [0 if n in outage else 2 for n in range(points)]},
        }
        return {"step": 60.0, "end": time.time(), "sources": sources, "services": services}

    def status(self, _asked: Mapping[str, Any] = {}) -> Mapping[str, Any]:
        now = time.time()
        services = [self.service(at, key) for at, key in enumerate(self.services)]
        problems = [
            {"part": f"service {one['key']}", "reason": reason}
            for one in services
            for reason in one["problems"]
        ]
        source = {
            "type": "kafka",
            "up": True,
            "paused": False,
            "lag": 0,
            "in_flight": 3,
            "slots": 2000,
            "oldest_seconds": 0.4,
            "received": 1_204_118,
            "filtered": 310_022,
            "settled": {
                "filtered": 310_022,
                "accepted": 893_900,
                "parked": 1240,
                "dead_lettered": 7,
                "released": 0,
            },
            "rate": 12.4,
            "problems": [],
        }
        sources = [
            {**source, "key": "uploads", "paused": ("source", "uploads") in self.paused},
            {**source, "key": "bucket", "type": "sqs", "rate": 5.2, "lag": 90 if not self.calm else 0},
            {**source, "key": "arrivals", "type": "dcache", "rate": 0.02, "lag": None, "in_flight": 0},
        ]
        if not self.calm:
            reason = "no connection to https://dcache.example.org:3880: connection refused"
            sources[2] |= {"up": False, "problems": [reason], "rate": 0.0}
            problems.append({"part": "source arrivals", "reason": reason})
        routes = [
            {
                "name": "routes[0]",
                "from": "uploads",
                "to": ["plants"],
                "when": 'data.size > 0 && subject.endsWith(".nc")',
                "merges": False,
            },
            {"name": "routes[1]", "from": "bucket", "to": ["floods"], "when": None, "merges": False},
            {
                "name": "routes[2]",
                "from": "bucket",
                "to": self.services[2:3],
                "when": 'subject.startsWith("tiles/")',
                "merges": True,
            },
            {"name": "routes[3]", "from": "arrivals", "to": self.services[3:], "when": None, "merges": False},
        ]
        clusters = [
            {
                "key": "main",
                "endpoint": "https://oscar.example.org",
                "limit": 8,
                "paused": False,
                "credential_ok": None,
                "credential_expires_seconds": None,
            },
            {
                "key": "flood-lab",
                "endpoint": "https://oscar.floods.example.org",
                "limit": 4,
                "paused": False,
                "credential_ok": self.calm,
                "credential_expires_seconds": 240.0 if self.calm else -600.0,
            },
        ]
        return {
            "version": "1.2.0",
            "started": now - 3 * 86400,
            "now": now,
            "ready": not problems,
            "problems": problems,
            "sources": sources,
            "routes": routes,
            "services": services,
            "clusters": clusters,
            "limits": self.rows(now),
            "store": {
                "used_bytes": 48 * 2**20,
                "limit_bytes": 2 * 2**30,
                "dead_letters": len(self.letters),
                "waiting": 0 if self.calm else 1240,
            },
        }

    def service(self, at: int, key: str) -> dict[str, Any]:
        shut = key == "floods" and not self.calm
        paused = ("service", key) in self.paused
        reason = (
            "5 events were refused: 401 Unauthorized from https://oscar.floods.example.org: are the "
            "credentials right, and does the service exist?"
        )
        return {
            "key": key,
            "cluster": "flood-lab" if key == "floods" else "main",
            "mode": "job",
            "open": not shut,
            "why": reason if shut else "a person has it paused" if paused else None,
            "paused": paused,
            "queued": 1000 if shut else self.queued,
            "queue": 1000,
            "in_flight": 0 if shut else 3,
            "limit": 16,
            "parked": 1240 if shut else 0,
            "parked_oldest_seconds": 1440.0 if shut else 0.0,
            "dead_letters": sum(letter["service"] == key for letter in self.letters),
            "accepted": 893_900,
            "failed": 168 if shut else 2,
            "rate": 0.0 if shut else 8.1 / (at + 1),
            "drain_seconds": None,
            "active_jobs": 37 if key == "plants" else None,
            "windows": 2 if at == 2 else 0,
            "problems": [reason] if shut else [],
        }

    def rows(self, now: float) -> list[dict[str, Any]]:
        row = {"found": None, "since": None, "until": None}
        rows = [
            {
                "kind": "cluster",
                "key": key,
                "name": name,
                "configured": value,
                "in_force": value,
                **row,
                "found": found if value == "auto" else None,
            }
            for key, found in (("main", 8), ("flood-lab", 4))
            for name, value in (("concurrency", "auto"), ("rate", "none"))
        ]
        for (key, name), value in self.limits.items():
            configured = "16" if name == "concurrency" else "none"
            set_at = None if value == configured else now - 5
            rows.append(
                {
                    "kind": "service",
                    "key": key,
                    "name": name,
                    "configured": configured,
                    "in_force": value,
                    **row,
                    "since": set_at,
                }
            )
        for kind, key in self.paused:
            rows.append(
                {
                    "kind": kind,
                    "key": key,
                    "name": "paused",
                    "configured": "no",
                    "in_force": "yes",
                    **row,
                    "since": now - 5,
                }
            )
        return rows
