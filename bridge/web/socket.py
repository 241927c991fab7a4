"""The door for commands on this machine: a Unix socket in the state directory, HTTP behind it."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

FILE = "commands.sock"
_ANSWER_SECONDS = 60.0
_LONGEST_COMMAND = 1 << 20

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Takes a command and gives its answer. A ValueError is the command's fault, told to who gave it."""


@asynccontextmanager
async def listen(state_dir: Path, handler: Handler) -> AsyncIterator[None]:
    """Answer commands at `state_dir` while inside. The directory's mode (0700) keeps other users out."""

    async def command(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handler(await request.json()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    app = web.Application(client_max_size=_LONGEST_COMMAND)
    app.router.add_post("/", command)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    with _address(state_dir) as address:
        try:
            await runner.setup()
            await web.UnixSite(runner, address).start()
            Path(address).chmod(0o600)  # noqa: ASYNC240 - the local disk, microseconds
            yield
        finally:
            await runner.cleanup()
            Path(address).unlink(missing_ok=True)  # noqa: ASYNC240 - likewise


def ask(state_dir: Path, command: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give a running daemon's answer to `command`; None when none listens.

    Raises PermissionError for a user who may not, ValueError for what the daemon calls wrong, and OSError
    when it gives no answer.
    """
    with _address(state_dir) as address:
        connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_ANSWER_SECONDS)
        try:
            connection.sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        try:
            connection.request("POST", "/", json.dumps(command), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except http.client.HTTPException as error:
            raise OSError(f"the daemon broke off: {error!r}") from error
        finally:
            connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ValueError(answer.get("error", f"the daemon answered {response.status}"))
    return dict(answer)


@contextmanager
def _address(state_dir: Path) -> Iterator[str]:
    """Give the socket's path in a short form: the kernel takes 107 bytes, a directory may be deeper."""
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{FILE}"
    finally:
        os.close(directory)
