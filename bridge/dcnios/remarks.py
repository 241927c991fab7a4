"""What is told of a file of DCNiOS, line by line, each with its place in that file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from bridge.core.errors import ConfigurationError, Mistake
from bridge.settings.tree import Place
from bridge.settings.tree import hide as hidden
from bridge.telemetry.logging import REDACTED


class What(StrEnum):
    """What became of a key."""

    KEPT = "kept"
    CHANGED = "changed"
    LEFT_OUT = "left out"
    LOST = "lost until now"
    """What DCNiOS itself lost there."""
    TO_DO = "to do"
    """What only a person can do, before the bridge runs or soon after."""


class Origin(NamedTuple):
    """Where something stands in DCNiOS's file."""

    place: Place
    key: str
    """Dotted path, such as `nifi.Source.Kafka[0].topic`."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One line for the one who wrote the file."""

    origin: Origin
    what: What
    text: str

    def __str__(self) -> str:
        return f"{self.origin.place}: {self.origin.key}: {self.what}: {self.text}"


class Report:
    """Collects the remarks, and the mistakes that make it impossible to go on."""

    def __init__(self, secrets: Collection[str]) -> None:
        self._secrets = set(secrets)
        self._remarks: list[Remark] = []
        self._mistakes: list[tuple[Place, Mistake]] = []

    def hide(self, secret: str) -> None:
        """Never show `secret`."""
        self._secrets.add(secret)

    def say(self, what: What, origin: Origin, text: str) -> None:
        """Add a remark."""
        self._remarks.append(Remark(origin, what, text))

    def wrong(self, origin: Origin, message: str) -> None:
        """Add a mistake."""
        self._mistakes.append((origin.place, Mistake(str(origin.place), origin.key, message)))

    def remarks(self) -> list[Remark]:
        """Return the remarks in the order of the file, each once, without a secret in them."""
        ordered = sorted(dict.fromkeys(self._remarks), key=lambda remark: remark.origin.place[:2])
        return [replace(remark, text=self._hidden(remark.text)) for remark in ordered]

    def raise_mistakes(self) -> None:
        """Raise ConfigurationError with every mistake in the order of the file, if there is any."""
        if self._mistakes:
            ordered = sorted(self._mistakes, key=lambda one: one[0][:2])
            raise ConfigurationError(
                [replace(mistake, message=self._hidden(mistake.message)) for _, mistake in ordered]
            )

    def _hidden(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = hidden(text, secret, REDACTED)
        return " ".join(text.split())
