"""The files of an imported configuration on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bridge.core.errors import ConfigurationError, Mistake
from bridge.dcnios.draft import CONFIGURATION, SECRETS
from bridge.dcnios.importing import Imported


def save(imported: Imported, directory: Path, *, force: bool) -> Sequence[Path]:
    """Write `bridge.yaml` into `directory`, and each secret into a file of mode 0600 in `secrets` beside it.

    All or nothing: raises ConfigurationError when one of the files is there, unless `force` replaces it, or
    when `secrets` is a link, and OSError when one can't be written.
    """
    secrets = directory / SECRETS
    files = {secrets / name: text + "\n" for name, text in imported.secrets.items()}
    files[directory / CONFIGURATION] = imported.configuration
    if mistakes := [Mistake(str(path), "", why) for path, why in _in_the_way(files, secrets, force=force)]:
        raise ConfigurationError(mistakes)
    directory.mkdir(parents=True, exist_ok=True)
    # Beside their places first: what a disk that is full interrupts has replaced nothing.
    with TemporaryDirectory(prefix=".import-", dir=directory) as beside:
        drafts = [(Path(beside, str(number)), path) for number, path in enumerate(files)]
        for draft, path in drafts:
            mode = 0o600 if path.parent == secrets else 0o644
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(files[path])
        if imported.secrets:
            secrets.mkdir(mode=0o700, exist_ok=True)
        for draft, path in drafts:
            draft.replace(path)
    return list(files)


def _in_the_way(files: Iterable[Path], secrets: Path, *, force: bool) -> Iterator[tuple[Path, str]]:
    if secrets.is_symlink():
        yield secrets, "is a link, and nothing was written: secrets would go to where it leads"
    for path in files:
        if path.is_dir() and not path.is_symlink():
            yield path, "is a directory, and nothing was written"
        elif not force and (path.exists() or path.is_symlink()):
            yield path, "is there already, and nothing was written; --force replaces it"
