"""The door for commands on this machine: a Unix socket in the state directory, HTTP behind it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from bridge.web.answers import LONGEST_COMMAND, Handler, answered, command_in, fault, too_long
from bridge.web.connections import abort

FILE = "commands.sock"
_ANSWER_SECONDS = 60.0
_COMMAND_SECONDS = 10.0
"""From a connection to the end of its command; one that says nothing would keep a descriptor for ever."""


@asynccontextmanager
async def listen(state_dir: Path, handler: Handler) -> AsyncIterator[None]:
    """Answer commands at `state_dir` while inside. The directory's mode (0700) keeps other users out."""

    async def command(request: web.Request) -> web.Response:
        try:
            document = await command_in(request)
        except ValueError as error:
            return fault(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return too_long()
        silent.discard(request.protocol)
        return await answered(handler, document)

    def admit() -> web.RequestHandler:
        assert runner.server is not None  # noqa: S101 - the runner is set up
        connection = runner.server()
        silent.add(connection)
        loop.call_later(_COMMAND_SECONDS, hang_up, connection)
        return connection

    def hang_up(connection: web.RequestHandler) -> None:
        if connection in silent:
            abort(connection)
        silent.discard(connection)

    loop = asyncio.get_running_loop()
    silent: set[web.RequestHandler] = set()
    """Connections by which no command has come yet."""
    app = web.Application(client_max_size=LONGEST_COMMAND)
    app.router.add_post("/", command)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    with _address(state_dir) as address:
        try:
            await runner.setup()
            listening = await loop.create_unix_server(admit, address)
            Path(address).chmod(0o600)  # noqa: ASYNC240 - the local disk, microseconds
            try:
                yield
            finally:
                listening.close()
        finally:
            await runner.cleanup()
            Path(address).unlink(missing_ok=True)  # noqa: ASYNC240 - likewise


def ask(
    state_dir: Path, command: Mapping[str, Any], seconds: float | None = None
) -> Mapping[str, Any] | None:
    """Give a running daemon's answer to `command` within `seconds`, else a minute; None when none listens.

    Raises PermissionError for a user who may not, ValueError for what the daemon calls wrong, and OSError
    when it can't do it, or gives no answer that can be understood.
    """
    seconds = seconds or _ANSWER_SECONDS
    with _address(state_dir) as address:
        connection = http.client.HTTPConnection("localhost", timeout=seconds)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(seconds)
        try:
            connection.sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        try:
            connection.request("POST", "/", json.dumps(command), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except TimeoutError:
            told = f"the bridge that runs gave no answer within {seconds:g} s: it may be at it still"
            raise OSError(told) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise OSError(f"the bridge that runs broke off: {type(error).__name__}") from error
        finally:
            connection.close()
    try:
        answer = dict(json.loads(text))
    except (ValueError, TypeError):
        raise OSError(
            f"the bridge that runs gave an answer that can't be understood (status {response.status})"
        ) from None
    if response.status in (400, 404, 413):
        raise ValueError(answer.get("error"))
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"the bridge that runs: {answer.get('error', f'status {response.status}')}")
    return answer


@contextmanager
def _address(state_dir: Path) -> Iterator[str]:
    """Give the socket's path in a short form: the kernel takes 107 bytes, a directory may be deeper."""
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{FILE}"
    finally:
        os.close(directory)
