"""The state directory: on this machine's own disk, for one daemon, readable by its user alone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from bridge.core.errors import StoreError, StoreLockedError

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|gfs2|gpfs|lustre|ncpfs|nfs\d?|ocfs2|orangefs|smb\d?|smbfs"
    r"|fuse\.(?:ceph(?:-fuse)?|gcsfuse|glusterfs|juicefs|rclone|s3fs|sshfs)"
)
"""Types of file systems in /proc/self/mountinfo on which SQLite's WAL and flock can't be trusted: the WAL
index is memory shared between processes of one machine (https://sqlite.org/wal.html)."""

_What = TypeVar("_What")


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk when it returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Have `text` alone in the file `path`, readable by its user alone: all of it on the disk, or nothing.

    Raises StoreError, and leaves the file as it was. Not for two at once.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}") from error


def parsed(path: Path, parse: Callable[[bytes], list[_What]], told: str) -> list[_What]:
    """Return what `parse` makes of the file `path`; nothing where there is none.

    Raise StoreError when it can't be read; and when `parse` can't understand it, with what is `told` then.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} can't be understood: {told}") from error


async def whole(write: Callable[[Path, _What], None], state_dir: Path, what: _What) -> None:
    """Call `write` in a thread. Raises what it does.

    Whoever is cancelled waits for its end all the same: a thread can't be stopped, and the next one would
    write to the same file beside it.
    """
    writing = asyncio.get_running_loop().run_in_executor(None, partial(write, state_dir, what))
    cancelled: asyncio.CancelledError | None = None
    while not writing.done():
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError as error:
            cancelled = error
    failure = writing.exception()
    if cancelled is not None:
        raise cancelled from failure
    if failure is not None:
        raise failure


def file_system_type(path: Path, mounts: str) -> str:
    """Return the type of file system that holds the absolute `path`, by the text of mountinfo (proc(5)).

    Empty when no mount holds it.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        head, separator, tail = line.partition(" - ")
        if not separator:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), head.split(" ")[4]))
        # A later mount on the same point lies above the earlier one.
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), tail.split(" ", 1)[0]
    return kind


def claim(state_dir: Path) -> int:
    """Make `state_dir` where it is missing, and lock it for this process.

    Returns the descriptor that holds the lock for as long as it is open. Raises StoreLockedError when
    another process holds it, StoreError when it can't be written or is on a network file system.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_network(state_dir.resolve())
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"the state directory {state_dir} can't be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreLockedError(
            f"the state directory {state_dir} is in use by another bridge, process {owner}"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"the state directory {state_dir} can't be written: {error.strerror}") from error
    return descriptor


def refuse_network(state_dir: Path) -> None:
    """Raise StoreError when the absolute `state_dir`, there or not, is on a network file system."""
    if not _MOUNTS.exists():
        return
    kind = file_system_type(state_dir, _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    if _NETWORK.fullmatch(kind):
        raise StoreError(
            f"the state directory {state_dir} is on a network file system ({kind}), which can't keep "
            "events safely: put state_dir on a local disk"
        )
