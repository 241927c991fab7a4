"""Every error the bridge raises on purpose.

BridgeError
├── ConfigurationError      the start fails (exit status 2, or 75): every mistake, with its place
├── SourceLost              the connection to an upstream is gone: reopen with backoff
├── StoreError              what must be durable is not: stop taking, lose nothing
│   ├── StoreFullError      it is at its budget: hold upstream
│   └── StoreLockedError    another daemon owns this state_dir (exit status 2)
└── CredentialError         no usable credential for a cluster or broker right now
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass


class BridgeError(Exception):
    """Base of all errors below."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in the configuration, and where a person mends it."""

    place: str
    """`FILE:LINE:COLUMN`, or `environment variable NAME`."""
    key: str
    """Dotted path of the key, such as `sources.uploads.topics`."""
    message: str
    """What was expected, what was found, and the likely fix."""
    may_pass: bool = False
    """Whether it is a file that is not there, or a secret's that is empty: what mounts or writes it may start
    after the bridge."""

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"


class ConfigurationError(BridgeError):
    """The configuration can't be used; carries every mistake found in one reading."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)

    @property
    def may_pass(self) -> bool:
        """Whether a later start may go well with the same configuration (exit status 75)."""
        return all(mistake.may_pass for mistake in self.mistakes)


class SourceLost(BridgeError):  # noqa: N818 - the word of the design: the runner reopens on it
    """The upstream went away, or must be reopened; unsettled Deliveries are RELEASED."""


class StoreError(BridgeError):
    """The store could not make something durable, or can't be read."""


class StoreFullError(StoreError):
    """The store is at `store.max_bytes`, for all but dead letters at 15/16 of it, until some of it goes."""


class StoreLockedError(StoreError):
    """Another process holds this state directory."""


class CredentialError(BridgeError):
    """A credential could not be read, fetched or refreshed."""


def root_cause(error: BaseException) -> BaseException:
    """Return the first error inside `error` that is no group, which is `error` itself when it is none."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def reason(error: BaseException) -> str:
    """Return what `error`, or the first in its group, says: with its type, unless the bridge raised it."""
    error = root_cause(error)
    text = str(error)
    return text if text and isinstance(error, BridgeError) else f"{type(error).__name__}: {text}".rstrip(": ")


def no_descriptors(error: BaseException | None) -> bool:
    """Return whether `error`, or what it came of, is that no file or socket can be opened here any more."""
    for _ in range(16):  # an error that was raised again and again may have come of itself
        if error is None:
            break
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False
