"""What the commands' options have in common: how they are read, and what is wrong with them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bridge.core.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from bridge.settings import Settings

FAILED, BAD_CONFIGURATION = 1, 2
NOT_YET = os.EX_TEMPFAIL

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
"""What takes the parsers of commands."""
Run: TypeAlias = Callable[[argparse.Namespace], int]


def add(
    commands: Commands, name: str, run: Run, told: str, *, aliases: Sequence[str] = (), **defaults: object
) -> argparse.ArgumentParser:
    """Add a command with `-c FILE`, of which `told` is the help; return its parser.

    `run` is called with its options, which `defaults` are among, and returns the exit status.
    """
    parser = commands.add_parser(name, help=told, aliases=aliases)
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="the configuration (YAML)"
    )
    parser.set_defaults(command=run, **defaults)
    return parser


def load(options: argparse.Namespace, *, files: bool = True) -> Settings:
    """Read the configuration that is named, and look at `files` that it names. Raises ConfigurationError."""
    from bridge import settings

    return settings.load(options.config, os.environ, files=files)


def chosen_source(options: argparse.Namespace, settings: Settings) -> str:
    """Give the source that is asked for. Raises ConfigurationError when there is none such."""
    if options.source is None:
        raise wrong("--source", f"is missing; there are {', '.join(settings.sources)}")
    refuse_unknown(options.source, "--source", "sources", settings.sources)
    return str(options.source)


def refuse_unknown(key: str, option: str, room: str, known: Iterable[str]) -> None:
    """Raise ConfigurationError when `key` is not among those `known` in that part of the configuration."""
    from bridge.settings.names import did_you_mean

    if key not in known:
        raise wrong(option, f"`{key}` is not in `{room}`{did_you_mean(key, known)}")


def wrong(option: str, message: str) -> ConfigurationError:
    """Return the error for an option that can't be used."""
    return ConfigurationError([Mistake("command line", option, message)])


def pair(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def at_least_1(text: str) -> int:
    """Read a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


def age(text: str) -> float:
    """Read an age in seconds, such as 7d."""
    from bridge.values import duration

    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, found {text!r}") from None
