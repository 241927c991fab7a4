"""What `check` finds on this machine: the state directory, its disk, the HTTP port."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.commands import known
from bridge.control.orders import PAUSED, shown
from bridge.core.errors import CredentialError, StoreError
from bridge.core.ports import Finding, Findings
from bridge.settings import Settings
from bridge.store import losses, overrides, read_stranded
from bridge.store.directory import refuse_network
from bridge.values import read_secret
from bridge.values import written_size as _size
from bridge.web import HttpConfig

_LEAST_FREE = 64 * 2**20
"""Bytes below which the store will soon be unable to write, whatever its budget."""
_ASK_SECONDS = 3.0
_SHORT_TOKEN = 20
"""Characters: as many that chance has made are not guessed, however fast somebody tries."""


async def check_local(settings: Settings) -> Sequence[Finding]:
    """Look at the state directory and the HTTP port; changes nothing."""
    daemon = _daemon(settings.state_dir)
    store = Findings("store")
    _directory(store, settings.state_dir)
    if not store.failed:
        _disk(store, settings)
        await _stranded(store, settings)
        _overrides(store, settings)
        _losses(store, settings.state_dir)
    if daemon is not None:
        store.note(f"a bridge runs with this state_dir: process {daemon}")
    http = Findings("http")
    await _port(http, settings.http, daemon)
    _token(http, settings.http)
    return [*store.found, *http.found]


def _directory(findings: Findings, state_dir: Path) -> None:
    there = _nearest(state_dir)
    user = f"the user that runs the bridge (this check runs as uid {os.geteuid()})"
    if not there.is_dir():
        findings.problem(f"{there} is a file, not a directory", "let `state_dir` name a directory")
    elif not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        reason = "read-only file system" if os.statvfs(there).f_flag & os.ST_RDONLY else "permission denied"
        findings.problem(
            f"state_dir {state_dir} can't be written: {there}: {reason}",
            f"mount it writable, or have `state_dir` owned by {user}",
        )
    else:
        try:
            refuse_network(state_dir.resolve())
        except StoreError as error:
            findings.problem(str(error), "put `state_dir` on a disk of this machine")
            return
        for name in ("lock", "events.sqlite3"):
            file = state_dir / name
            if file.exists() and not os.access(file, os.R_OK | os.W_OK):
                findings.problem(
                    f"{file} can't be written, though the directory can", f"have it owned by {user}"
                )


def _disk(findings: Findings, settings: Settings) -> None:
    there = _nearest(settings.state_dir)
    free = shutil.disk_usage(there).free
    used = sum(file.stat().st_size for file in settings.state_dir.glob("events.sqlite3*"))
    budget = settings.store.max_bytes
    if free < _LEAST_FREE:
        findings.problem(
            f"{_size(free)} are free on the disk of {there}: nothing can be kept",
            "make room on that disk, or put `state_dir` on another",
        )
    elif free + used < budget:
        findings.warning(
            f"`store.max_bytes` is {_size(budget)}, but the disk of {there} has {_size(free)} free, beside "
            f"the {_size(used)} in the store: the disk would be full before the budget is used up",
            "lower `store.max_bytes`, make room, or put `state_dir` on a larger disk",
        )
    else:
        findings.ok(f"{settings.state_dir} can be written; {_size(free)} free for {_size(budget)} at most")


async def _stranded(findings: Findings, settings: Settings) -> None:
    try:
        found = await asyncio.to_thread(read_stranded, settings.state_dir, known(settings))
    except StoreError as error:
        findings.note(f"what is kept can't be counted: {error}")
        return
    for each in found:
        findings.problem(each.message, each.remedy)


def _overrides(findings: Findings, settings: Settings) -> None:
    try:
        kept = overrides.read(settings.state_dir)
    except StoreError as error:
        findings.problem(str(error), "else the bridge does not start")
        return
    for row in shown(settings, kept, time.time()):
        until = "until a person ends it" if row.until is None else f"for another {_hours(row.until)}"
        if row.name == PAUSED:
            findings.warning(
                f"{row.kind} {row.key} is paused, {until}",
                f"`oscar-bridge resume {row.kind} {row.key}`, unless it is meant",
            )
        else:
            findings.note(
                f"{row.kind} {row.key}: {row.name} is {row.in_force} in place of {row.configured}, {until}"
            )


def _losses(findings: Findings, state_dir: Path) -> None:
    try:
        kept = losses.read(state_dir)
    except StoreError as error:
        findings.problem(str(error), "else the bridge does not start")
        return
    for source, sentence in losses.sentences(kept).items():
        findings.warning(f"source {source}: {sentence}", losses.remedy(source))


def _hours(until: float) -> str:
    minutes = max(1, round((until - time.time()) / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


async def _port(findings: Findings, config: HttpConfig, daemon: str | None) -> None:
    host, port = config.host, config.port
    if port == 0:
        findings.note("http.port is 0: any free port is taken, and told in the log alone")
        return
    try:
        async with asyncio.timeout(_ASK_SECONDS):  # a name, perhaps, for which no server answers
            addresses = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        trouble = _bind(addresses)
    except TimeoutError:
        trouble = OSError(None, f"its name was not resolved within {_ASK_SECONDS:g} s")
    except OSError as error:
        trouble = error
    if trouble is None:
        findings.ok(f"{host} port {port} is free")
    elif trouble.errno != errno.EADDRINUSE:
        findings.problem(
            f"can't listen on {host} port {port}: {trouble.strerror}",
            "let `http.host` be an address of this machine, and `http.port` above 1023",
        )
    elif daemon is not None and await _answers_livez(host, port, by_tls=config.tls is not None):
        findings.ok(f"{host} port {port} is answered by the bridge that runs")
    else:
        findings.problem(
            f"{host} port {port} is taken by another program",
            "choose another `http.port`, or stop what listens there (ss -ltnp tells)",
        )


def _token(findings: Findings, http: HttpConfig) -> None:
    """Look at what protects the status page and its API; nothing is told where there is neither."""
    if http.token_file is None:
        return
    if http.tls is None and not http.is_local:
        findings.warning(
            f"the token of the status page and its API goes over {http.host} in the clear: whoever reads "
            "along can do all that it opens",
            "set `http.tls`, or let `http.host` be 127.0.0.1 with a proxy before it that speaks TLS",
        )
    try:
        token, mode = read_secret(http.token_file), http.token_file.stat().st_mode
    except (CredentialError, OSError) as error:
        findings.problem(f"http.token_file can't be used: {error}", "nobody is let in until it can")
        return
    if len(token) < _SHORT_TOKEN:
        findings.warning(
            f"the token in {http.token_file} has {len(token)} characters: it may be guessed",
            f"write one of at least {_SHORT_TOKEN} there, such as `openssl rand -base64 32` makes",
        )
    if mode & stat.S_IROTH:
        findings.warning(
            f"every user of this machine can read {http.token_file}", f"chmod o-r {http.token_file}"
        )


def _bind(addresses: Sequence[tuple[Any, ...]]) -> OSError | None:
    """Try to take the port as the bridge would; gives the first address' trouble."""
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as scout:
            scout.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                scout.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                scout.bind(address)
                scout.listen(1)
            except OSError as error:
                return error
    return None


async def _answers_livez(host: str, port: int, *, by_tls: bool) -> bool:
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    anybody = ssl.create_default_context() if by_tls else None
    if anybody is not None:  # it is not asked who it is: nothing is told to it
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            reader, writer = await asyncio.open_connection(near, port, ssl=anybody)
            try:
                writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
                answer = await reader.read(4096)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.") and answer.endswith(b"ok\n")


def _daemon(state_dir: Path) -> str | None:
    """Give the process that holds the lock of `state_dir`, or None."""
    try:
        descriptor = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once, by closing
    except BlockingIOError:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def _nearest(path: Path) -> Path:
    """Give `path`, or the nearest directory above it that is there, in which it would be made."""
    path = path.absolute()
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110 - Path.exists() raises on EACCES
        path = path.parent
    return path
