"""From a file and the environment to settings, or to every mistake in them at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from bridge.core.errors import ConfigurationError, Mistake
from bridge.net.proxies import mistakes_in
from bridge.settings.layers import EnvironmentLayer, FileLayer
from bridge.settings.messages import validated
from bridge.settings.models import Settings
from bridge.settings.references import check
from bridge.settings.tree import Value


def load(path: Path, environ: Mapping[str, str], *, files: bool = True) -> Settings:
    """Read the configuration at `path`; `BRIDGE__…` variables of `environ` go over it.

    Without `files` those that it names, such as secrets, are not looked at: they may be another machine's.
    Raises ConfigurationError with all mistakes, in the order of the file. No secret is in any of them.
    """
    file = FileLayer(path, environ)
    tree, mistakes = file.tree, file.mistakes
    _refuse_dcnios(tree, path)
    environment = EnvironmentLayer(file, environ)
    mistakes += mistakes_in(environ)
    unresolved, warnings = check(tree)
    context = {"directory": path.absolute().parent, "files": files}
    settings, wrong = validated(
        Settings, tree, lambda: Settings.of_layers(environment, file, context=context)
    )
    for found in (unresolved, wrong):  # of two for one key, the one that knows more
        told = {mistake.key for mistake in mistakes}
        mistakes += [mistake for mistake in found if mistake.key not in told]
    if settings is None or mistakes:
        raise ConfigurationError(sorted(mistakes, key=_order))
    settings._warnings = tuple(warnings)  # noqa: SLF001 - not a key of the file, and this is what makes Settings
    return settings


def _refuse_dcnios(tree: Value, path: Path) -> None:
    """Raise ConfigurationError for a file of DCNiOS: it would be unknown keys alone."""
    nifi = tree.child("nifi")
    if nifi is not None and not (tree.mapping().keys() & Settings.model_fields.keys()):
        message = (
            f"this is a file of DCNiOS; `oscar-bridge import-dcnios {shlex.quote(str(path))}` makes a "
            "configuration of the bridge of it"
        )
        raise ConfigurationError([Mistake(str(nifi.place), "nifi", message)])


def _order(mistake: Mistake) -> tuple[int, int, int]:
    """By line and column; what has none, because it is in the environment, comes last."""
    _, line, column = ("::" + mistake.place).rsplit(":", 2)
    return (0, int(line), int(column)) if line.isdigit() and column.isdigit() else (1, 0, 0)
