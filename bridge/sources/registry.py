"""Which kinds of source there are: those that installed packages give under the entry points of `GROUP`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import Field, TypeAdapter

from bridge.core.errors import BridgeError, reason
from bridge.sources import SourceConfig, SourceKind
from bridge.telemetry.logging import excerpt

GROUP = "oscar_bridge.sources"
"""Entry points by this name give a SourceKind each, named as its `type`."""


class _Another(SourceConfig):
    type: Literal["another kind"]


@dataclass(frozen=True, slots=True)
class Registry:
    """What the installed packages give."""

    kinds: Mapping[str, SourceKind[Any]]
    """By the `type` of the configuration, in the order of these."""
    unusable: Mapping[str, str]
    """Types that a package names and of which no source can be made, and why: for a person."""


@cache
def installed() -> Registry:
    """Return the kinds of the packages installed. Raises BridgeError when there is none, not even ours."""
    found = read(entry_points(group=GROUP))
    if not found.kinds:
        raise BridgeError(
            "no kind of source is installed, not even the bridge's own: its package was installed before it "
            "had any; install it once more (in a clone `pip install --no-deps --editable .`)"
        )
    return found


def kind_of(config: SourceConfig) -> SourceKind[Any]:
    """Return the kind that `config`, which is of the configuration, is of."""
    return installed().kinds[config.type]


def any_source() -> Any:
    """Return the type of what may stand below `sources`, for pydantic, which chooses by `type`."""
    return Annotated[
        Union[tuple(kind.config for kind in installed().kinds.values())],  # noqa: UP007 - of a length not known
        Field(discriminator="type"),
    ]


def read(entries: Iterable[EntryPoint]) -> Registry:
    """Load `entries`. What is wrong with one is its own: the others are there all the same."""
    by_type = defaultdict[str, list[EntryPoint]](list)
    for entry in entries:
        by_type[entry.name].append(entry)
    kinds, unusable = dict[str, SourceKind[Any]](), dict[str, str]()
    for name, given in sorted(by_type.items()):
        try:
            kinds[name] = _the_one(name, given)
        except BridgeError as error:
            unusable[name] = str(error)
    return Registry(kinds, unusable)


def _the_one(name: str, given: Iterable[EntryPoint]) -> SourceKind[Any]:
    entry, *others = given
    if others:
        plugs = " and ".join(sorted(_named(each) for each in (entry, *others)))
        raise BridgeError(f"there is more than one plug of type `{name}`, {plugs}: uninstall all but one")
    return _load(entry)


def _load(entry: EntryPoint) -> SourceKind[Any]:
    """Load what `entry` names. Raises BridgeError when it is no kind of source that can be used."""
    plug = f"the plug of type `{entry.name}`, {_named(entry)},"
    try:
        kind = entry.load()
    except Exception as error:  # whatever another's package raises, the rest works without it
        raise BridgeError(f"{plug} can't be loaded: {excerpt(reason(error))}") from error
    if not isinstance(kind, SourceKind):
        raise BridgeError(f"{plug} gives a {type(kind).__name__}, where a SourceKind is expected")
    config: object = kind.config
    expected = f"`type: Literal[{entry.name!r}]`"
    if not isinstance(config, type) or not issubclass(config, SourceConfig):
        raise BridgeError(f"{plug} has a configuration that is no subclass of SourceConfig")
    if "type" not in config.model_fields:
        raise BridgeError(f"{plug} has a configuration without {expected}")
    try:  # as pydantic will take it, beside the others
        config.model_rebuild()
        union: Any = Annotated[config | _Another, Field(discriminator="type")]
        TypeAdapter(union)
    except Exception as error:
        why = excerpt(reason(error))
        raise BridgeError(f"{plug} has a configuration that can't be used: {why}") from error
    if get_args(config.model_fields["type"].annotation) != (entry.name,):
        raise BridgeError(f"{plug} has a configuration without {expected}")
    return kind


def _named(entry: EntryPoint) -> str:
    given_by = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
    return f"{entry.value}{given_by}"
