"""`oscar-bridge test`: events with what should come of them, in a file beside a site's configuration."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import AwareDatetime, Field, field_validator, model_validator

from bridge.checkup.preview import End, ends_of, preview
from bridge.checkup.report import lines_of_routes
from bridge.core.errors import ConfigurationError, Mistake
from bridge.core.event import Event
from bridge.settings import Settings
from bridge.settings.document import read
from bridge.settings.messages import validated
from bridge.settings.names import did_you_mean
from bridge.settings.tree import Value
from bridge.values import Located, Model

UNKNOWN_ID = "(unknown)"
"""The id of an event that is given without one: names of jobs made of it mean nothing."""


class Expected(Model):
    """One thing that should come of an event; what is not given is not compared."""

    service: str | None = None
    """The key of the service that gets it."""
    route: int | None = Field(default=None, ge=1)
    """By which route, counted among those of the source, as `check --event` does."""
    payload: Any = None
    """What OSCAR gets: JSON, or text; where that is base64, what is in it."""
    subject: str | None = None
    """Of the event, where a source makes several of one message."""
    type: str | None = None
    job: str | None = None
    """The name of the job, for an event with an `id`."""
    window: str | None = None
    """The key of the window in which it is sent with others; empty where the route has no key."""
    dead_letter: str | None = None
    """The cause, where it should become one."""

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if self.service is None and self.dead_letter is None:
            raise ValueError("expected `service` or `dead_letter`")
        return self


class Case(Model):
    """One event, and all that should come of it: nothing where `expect` is an empty list."""

    name: str = Field(min_length=1)
    source: str
    """A key of `sources`."""
    id: str = Field(default=UNKNOWN_ID, min_length=1)
    type: str = Field(default="unknown", min_length=1)
    subject: str | None = None
    time: AwareDatetime | None = None
    attributes: Mapping[str, str] = Field(default_factory=dict)
    data: Any = None
    """JSON, or text as it is."""
    data_base64: str | None = None
    data_file: Located | None = None
    expect: tuple[Expected, ...]

    @field_validator("data_base64")
    @classmethod
    def _is_base64(cls, value: str | None) -> str | None:
        try:
            binascii.a2b_base64("".join((value or "").split()), strict_mode=True)
        except (binascii.Error, ValueError):
            raise ValueError("expected base64") from None
        return value

    @field_validator("data_file")
    @classmethod
    def _is_readable(cls, value: Path) -> Path:
        try:
            value.open("rb").close()
        except OSError as error:
            raise ValueError(f"expected a readable file, but {value}: {error.strerror}") from None
        return value

    @model_validator(mode="after")
    def _has_one_data(self) -> Self:
        given = {"data", "data_base64", "data_file"} & self.model_fields_set
        if len(given) > 1:
            raise ValueError(f"expected one of {' and '.join(sorted(given))}")
        return self

    def body(self) -> bytes:
        """Return the event's data. Raises OSError."""
        if self.data_file is not None:
            return self.data_file.read_bytes()
        if self.data_base64 is not None:
            return base64.b64decode(self.data_base64)
        if "data" not in self.model_fields_set:
            return b""
        return self.data.encode() if isinstance(self.data, str) else json.dumps(self.data).encode()


class Cases(Model):
    """The whole file."""

    tests: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Result:
    """What a case came to."""

    name: str
    place: str
    """Of the case in its file."""
    difference: Sequence[str]
    """Lines of what was expected (`-`) and what was found (`+`), none where they are alike; then why."""


def run_cases(settings: Settings, path: Path) -> Iterator[Result]:
    """Run the cases of a file one by one.

    Raises ConfigurationError, before any has run, for a file that can't be used, or one of an event's data.
    """
    mistakes: list[Mistake] = []
    root = read(path, mistakes, expected="`tests`, a list")
    context = {"directory": path.absolute().parent}
    cases, wrong = validated(Cases, root, lambda: Cases.model_validate(root.plain(), context=context))
    mistakes += wrong
    if cases is None:
        raise ConfigurationError(mistakes)
    tree = root.mapping()["tests"].items()
    for at, (case, value) in enumerate(zip(cases.tests, tree, strict=True)):
        mistakes += _unknown(settings, case, value, f"tests[{at}]")
    if mistakes:
        raise ConfigurationError(mistakes)
    for case, value in zip(cases.tests, tree, strict=True):
        yield Result(case.name, str(value.place), _difference(settings, case))


def _unknown(settings: Settings, case: Case, value: Value, key: str) -> Iterator[Mistake]:
    """Find the names that are not in the configuration."""
    yield from _refused(value, "source", case.source, settings.sources, key)
    expect = value.mapping()["expect"].items()
    for at, expected in enumerate(case.expect):
        if expected.service is not None:
            yield from _refused(
                expect[at], "service", expected.service, settings.services, f"{key}.expect[{at}]"
            )


def _refused(holder: Value, key: str, name: str, known: Collection[str], at: str) -> Iterator[Mistake]:
    if name not in known:
        place = holder.mapping()[key].place
        yield Mistake(str(place), f"{at}.{key}", f"`{name}` is not in `{key}s`{did_you_mean(name, known)}")


def _difference(settings: Settings, case: Case) -> list[str]:
    event = Event(
        id=case.id,
        source=settings.sources[case.source].identity or case.source,
        type=case.type,
        subject=case.subject,
        time=case.time or datetime.now(UTC),
        data=case.body(),
        attributes=case.attributes,
    )
    told = preview(settings, case.source, event)
    asked = [each.model_dump(exclude_none=True) for each in case.expect]
    ends = list(ends_of(told))
    found = [_found(end, asked[at] if at < len(asked) else {}) for at, end in enumerate(ends)]
    wanted, got = ([line for each in each_of for line in _shown(each)] for each_of in (asked, found))
    if wanted == got:
        return []
    compared = [line for line in difflib.ndiff(wanted, got) if not line.startswith("?")]
    return [*compared, *lines_of_routes(told)]


def _found(end: End, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return of what was found what is asked for, and in any case whether a service got it."""
    everything: dict[str, Any] = {"service": end.service or None, "route": end.route}
    if end.sent is not None and end.sent.payload is not None:
        everything |= {"payload": _like(end.sent.payload, asked.get("payload")), "job": end.sent.job}
    if end.event is not None:
        everything |= {"subject": end.event.subject, "type": end.event.type}
    everything |= {"window": end.window, "dead_letter": end.dead_letter or None}
    # In the order of what was asked for, so that like things stand side by side.
    keys = [*asked, "dead_letter" if end.dead_letter else "service"]
    return {key: everything[key] for key in keys if everything.get(key) is not None}


def _like(payload: str, asked: Any) -> Any:
    """Return a body as JSON where that is asked for; as text elsewhere, of base64 that which is in it."""
    if not isinstance(asked, str):
        try:
            return json.loads(payload)
        except ValueError:
            return payload
    if payload == asked:
        return payload
    try:
        return base64.b64decode(payload.removeprefix("."), validate=True).decode("utf-8")
    except ValueError:
        return payload


def _shown(item: Mapping[str, Any]) -> list[str]:
    alike = {key: json.loads(json.dumps(value, sort_keys=True)) for key, value in item.items()}
    return yaml.safe_dump([alike], sort_keys=False, allow_unicode=True, width=1000).splitlines()
