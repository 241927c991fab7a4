"""The files of an imported configuration on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bridge.core.errors import ConfigurationError, Mistake
from bridge.dcnios.draft import CONFIGURATION, SECRETS
from bridge.dcnios.importing import Imported


def save(imported: Imported, directory: Path, *, force: bool) -> Sequence[Path]:
    """Write `bridge.yaml` into `directory`, and each secret into a file of mode 0600 in `secrets` beside it.

    All or nothing: raises ConfigurationError when one of the files is there, unless `force` replaces it, and
    OSError when one can't be written.
    """
    files = {directory / SECRETS / name: text + "\n" for name, text in imported.secrets.items()}
    files[directory / CONFIGURATION] = imported.configuration
    if not force:
        _refuse_existing(files)
    directory.mkdir(parents=True, exist_ok=True)
    if imported.secrets:
        (directory / SECRETS).mkdir(mode=0o700, exist_ok=True)
    written: list[Path] = []
    try:
        for path, text in files.items():
            if force:
                path.unlink(missing_ok=True)
            mode = 0o600 if path.parent.name == SECRETS else 0o644
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(path)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    return written


def _refuse_existing(files: Mapping[Path, str]) -> None:
    there = [path for path in files if path.exists() or path.is_symlink()]
    if there:
        message = "is there already, and nothing was written; --force replaces it"
        raise ConfigurationError([Mistake(str(path), "", message) for path in there])
