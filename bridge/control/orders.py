"""What may be changed, and which values are then in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from bridge.pipeline.limits.config import ClusterLimitsConfig, LimitsConfig
from bridge.settings import Settings
from bridge.settings.names import did_you_mean
from bridge.store.overrides import Kind, Override, Value
from bridge.values import Document

LONGEST = 366 * 86400.0
"""Seconds that an override may last for; one without an end lasts until it is ended."""
PAUSED = "paused"
LIMITS = ("concurrency", "rate", "active_jobs")
"""A source has none; the last is a service's alone, where it is configured."""

_EXPECTED = {
    "concurrency": "a whole number from 1 to 1000, or auto",
    "rate": "a rate such as 10/s, 600/m or 1000/h, or none",
    "active_jobs": "a whole number from 1 to 10000, or none",
}


class Part(NamedTuple):
    """A source, a service or a cluster."""

    kind: Kind
    key: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class Order(Document):
    """What to do with one part: change or reset its limits, pause or resume it. `limits` alone only shows."""

    do: Literal["limits", "pause", "resume"]
    kind: Kind | None = None
    key: str | None = None
    limits: dict[str, str] = Field(default_factory=dict)
    """By name, as in the configuration, but for `none`."""
    reset: bool = False
    """Have the configuration's limits again."""
    seconds: float | None = Field(default=None, gt=0, le=LONGEST)
    """How long; without it until somebody ends it."""

    @property
    def changes(self) -> bool:
        """Whether it does more than show."""
        return self.do != "limits" or bool(self.limits) or self.reset


@dataclass(frozen=True, slots=True)
class Row:
    """One value: the configuration's, and what is in force."""

    kind: Kind
    key: str
    name: str
    configured: str
    in_force: str
    found: int | None
    """Attempts that `auto` lets be under way at once, now."""
    since: float | None
    """Seconds since 1970; None while the configuration's is in force."""
    until: float | None


class Overrides:
    """The configuration's values, and what is in force in their place."""

    def __init__(self, settings: Settings, kept: Iterable[Override] = (), now: float = 0.0) -> None:
        """Take up those `kept` that still hold; `ended` has the others, with the reason."""
        self._jobs = frozenset(key for key, service in settings.services.items() if service.mode == "job")
        self.file: dict[Part, dict[str, Value]] = {}
        for key, cluster in settings.clusters.items():
            self.file[Part("cluster", key)] = _values(cluster.limits)
        for key, service in settings.services.items():
            self.file[Part("service", key)] = _values(service.limits)
        for key in settings.sources:
            self.file[Part("source", key)] = {PAUSED: False}
        self.there: frozenset[Override] = frozenset()
        self.ended: list[tuple[Override, str]] = []
        for each in kept:
            file = self.file.get(Part(each.kind, each.key), {})
            if each.name not in file:
                self.ended.append((each, "it is not configured any more"))
            elif file[each.name] != each.replaced:
                self.ended.append((each, "the configuration has another value"))
            elif each.until is not None and each.until <= now:
                self.ended.append((each, "its time is over"))
            else:
                self.there |= {each}

    def of(self, part: Part) -> dict[str, Override]:
        """Give those of `part` by name."""
        return {each.name: each for each in self.there if (each.kind, each.key) == part}

    def in_force(self, part: Part) -> dict[str, Value]:
        """Give the values of `part` by name."""
        return self.file[part] | {name: each.value for name, each in self.of(part).items()}

    def after(self, order: Order, now: float) -> frozenset[Override]:
        """Give those that there are once `order` is carried out. Raises ValueError when it can't be."""
        part = self.part(order)
        old = frozenset(self.of(part).values())
        names = {PAUSED} if order.do != "limits" else set(LIMITS) if order.reset else set(order.limits)
        wanted: dict[str, Value] = {}
        if order.do == "pause":
            wanted = {PAUSED: True}
        elif order.do == "limits":
            wanted = self.read(part, order.limits)
        until = None if order.seconds is None else now + order.seconds
        file = self.file[part]
        fresh = {
            Override(*part, name, value, file[name], since=now, until=until)
            for name, value in wanted.items()
            if value != file[name]
        }
        return (self.there - {each for each in old if each.name in names}) | fresh

    def part(self, order: Order) -> Part:
        """Give the part that `order` names. Raises ValueError when there is none such."""
        if order.kind is None or order.key is None:
            raise ValueError("say which source, service or cluster is meant")
        part = Part(order.kind, order.key)
        if part not in self.file:
            known = [key for kind, key in self.file if kind == order.kind]
            raise ValueError(f"there is no {part}{did_you_mean(order.key, known)}")
        return part

    def read(self, part: Part, limits: Mapping[str, str]) -> dict[str, Value]:
        """Give the limits that are written so. Raises ValueError, with what was expected."""
        model = LimitsConfig if part.kind == "service" else ClusterLimitsConfig
        read: dict[str, Value] = {}
        for name, text in limits.items():
            known = self.file[part].keys() & set(LIMITS)
            if name == "active_jobs" and part.kind == "service" and name not in known:
                raise ValueError(self._why_no_active_jobs(part.key))
            if name not in known:
                raise ValueError(
                    f"`{name}` is no limit of {part} that can be changed{did_you_mean(name, known)}"
                )
            try:
                value = model.model_validate({name: None if text == "none" else text})
            except ValidationError:
                raise ValueError(f"{name}: expected {_EXPECTED[name]}, found {text!r}") from None
            read[name] = getattr(value, name)
        if read.get("concurrency") == "auto" and part.kind == "service" and part.key in self._jobs:
            raise ValueError(
                "concurrency: expected a whole number from 1 to 1000; `auto` is for `mode: run`, and for "
                "jobs among the limits of the cluster"
            )
        return read

    def _why_no_active_jobs(self, service: str) -> str:
        if service not in self._jobs:
            return "active_jobs: is for `mode: job`, since a run is over when it is answered"
        return (
            f"active_jobs: is not in the configuration of `services.{service}.limits`, so the bridge does "
            "not know which of its jobs are active; set it there and start the bridge again"
        )

    def rows(self, order: Order, found: Callable[[Part], int | None]) -> list[Row]:
        """Show all limits and what is paused; of the part that `order` names, everything."""
        parts = self.file if order.kind is None else [self.part(order)]
        return [
            row
            for part in parts
            for row in self._rows(part, found(part))
            if row.name != PAUSED or order.kind is not None or row.since is not None
        ]

    def _rows(self, part: Part, found: int | None) -> list[Row]:
        of, rows = self.of(part), []
        for name, file in self.file[part].items():
            override = of.get(name)
            value = file if override is None else override.value
            rows.append(
                Row(
                    *part,
                    name,
                    written(name, file),
                    written(name, value),
                    found if value == "auto" else None,
                    None if override is None else override.since,
                    None if override is None else override.until,
                )
            )
        return rows


def _values(limits: LimitsConfig | ClusterLimitsConfig) -> dict[str, Value]:
    values: dict[str, Value] = {"concurrency": limits.concurrency, "rate": limits.rate}
    if isinstance(limits, LimitsConfig) and limits.active_jobs is not None:
        values["active_jobs"] = limits.active_jobs
    return values | {PAUSED: False}


def shown(settings: Settings, kept: Iterable[Override], now: float) -> list[Row]:
    """Show what of `kept` is in force in place of the configuration's values."""
    rows = Overrides(settings, kept, now).rows(Order(do="limits"), lambda _part: None)
    return [row for row in rows if row.since is not None]


def written(name: str, value: Value) -> str:
    """Write a value as a person does."""
    if name == PAUSED:
        return "yes" if value else "no"
    if name != "rate" and value is not None:
        return str(value)
    if not isinstance(value, int | float):
        return "none"
    for unit, seconds in (("s", 1), ("m", 60), ("h", 3600)):
        if value * seconds >= 1:
            return f"{value * seconds:g}/{unit}"
    return f"{value * 3600:g}/h"
