"""The configuration as typed models, composed of what each room asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bridge.destinations.oscar.config import ClusterConfig, ServiceConfig
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.limits.config import ClusterLimitsConfig
from bridge.pipeline.routes import RouteConfig
from bridge.sources import SourceConfig
from bridge.sources.registry import any_source
from bridge.store import JournalConfig, StoreConfig
from bridge.values import Located, Model, Seconds
from bridge.web import HttpConfig

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=63)]
"""What an operator calls a cluster, service or source: it appears in metrics, logs and commands."""

if TYPE_CHECKING:
    AnySource = SourceConfig
else:
    AnySource = any_source()
"""A source of one of the kinds that are installed."""


def _with_defaults(entry: Any, defaults: dict[str, Any]) -> Any:
    if entry is None:  # `plants:` with nothing behind it is a service with every default
        entry = {}
    if not isinstance(entry, dict):
        return entry
    return entry | {key: value for key, value in defaults.items() if entry.get(key) is None}


class LogConfig(Model):
    """Where the bridge's own words go: standard error, one line an occurrence."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious lines to write."""
    format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for a person."""


class Cluster(ClusterConfig):
    """One OSCAR cluster with the limits that its services' lanes share."""

    limits: ClusterLimitsConfig = ClusterLimitsConfig()


class Service(LaneConfig, ServiceConfig):
    """One service of OSCAR with the lane in front of it."""

    @model_validator(mode="after")
    def _auto_is_for_runs(self) -> Self:
        if self.limits.concurrency == "auto" and self.mode == "job":
            raise ValueError(
                "`limits.concurrency: auto` is for `mode: run`: for jobs it is among the `limits` of the "
                "cluster, which its services share, so write a number, the most that it may have of them"
            )
        return self

    @model_validator(mode="after")
    def _active_jobs_is_for_jobs(self) -> Self:
        if self.limits.active_jobs is not None and self.mode == "run":
            raise ValueError("`limits.active_jobs` is for `mode: job`: a run is over when it is answered")
        if self.track and self.mode == "run":
            raise ValueError("`track` is for `mode: job`: a run is over when it is answered")
        if self.on_failure != "ignore" and not self.follows:
            raise ValueError("`on_failure: dead-letter` needs `track: true`: else no job is seen to fail")
        if self.success == "output" and not self.follows:
            raise ValueError("`success: output` needs `track: true`: else no job is seen to end")
        if self.remove_finished and not self.follows:
            raise ValueError("`remove_finished` needs `track: true`: else no job is seen to have succeeded")
        return self


_context: ContextVar[Mapping[str, Any] | None] = ContextVar("context", default=None)


class _InContext(BaseModel):
    """A model that is made in a context, which `BaseSettings` can't hand on: pydantic's documented way."""

    def __init__(self, /, **values: Any) -> None:
        self.__pydantic_validator__.validate_python(values, self_instance=self, context=_context.get())


class Settings(BaseSettings, _InContext):
    """The whole configuration."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    state_dir: Located
    """Where the store is kept. Must be writable."""
    store: StoreConfig = StoreConfig()
    """What is kept in it, and for how long."""
    journal: JournalConfig = JournalConfig()
    """What is written down of all events, and for how long."""
    http: HttpConfig = HttpConfig()
    """Health, readiness and metrics."""
    log: LogConfig = LogConfig()
    """Log lines."""
    drain_seconds: Seconds = 25.0
    """How long lanes may go on when the bridge is told to stop."""
    clusters: dict[Key, Cluster] = Field(min_length=1)
    """OSCAR clusters by key."""
    services: dict[Key, Service] = Field(min_length=1)
    """Services by key; the key names the lane."""
    sources: dict[Key, AnySource] = Field(min_length=1)
    """Upstreams by key."""
    routes: tuple[RouteConfig, ...] = Field(min_length=1)
    """Which events go to which service."""

    _warnings: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _keys_are_defaults(cls, data: Any) -> Any:
        """A service is called by its key and is on the only cluster, a source's identity is its key."""
        if not isinstance(data, dict):
            return data
        clusters = data.get("clusters")
        cluster = (
            {"cluster": next(iter(clusters))} if isinstance(clusters, dict) and len(clusters) == 1 else {}
        )
        defaults: dict[str, Callable[[Any], dict[str, Any]]] = {
            "services": lambda key: {"service": key, **cluster},
            "sources": lambda key: {"identity": key},
        }
        return data | {
            room: {key: _with_defaults(entry, of_key(key)) for key, entry in data[room].items()}
            for room, of_key in defaults.items()
            if isinstance(data.get(room), dict)
        }

    @classmethod
    def of_layers(cls, *layers: PydanticBaseSettingsSource, context: Mapping[str, Any]) -> Self:
        """Make the settings of what `layers` give, the first over the others. Raises ValidationError."""
        token = _context.set(context)
        try:
            return cls(_build_sources=(layers, {}))
        finally:
            _context.reset(token)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: object, init_settings: PydanticBaseSettingsSource, *_: object, **__: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing but what is given: pydantic's own layers know no places."""
        return (init_settings,)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What can be meant but seldom is, each with its place; for the log."""
        return self._warnings

    def reachable(self, source: str) -> tuple[str, ...]:
        """Give the services that routes from `source` lead to, in the order of the configuration."""
        reached = {name for route in self.routes if route.from_ == source for name in route.reachable}
        return tuple(name for name in self.services if name in reached)
