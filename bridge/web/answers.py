"""How a command that came over HTTP is answered, and what is told when it can't be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import structlog
from aiohttp import web

from bridge.core.errors import BridgeError

LONGEST_COMMAND = 1 << 20
"""Bytes; a number of a dead letter takes about eight."""

_TURN = 0.002
"""Seconds of writing an answer after which the other tasks of the process get their turn."""

_log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Takes a command and gives its answer. A NotThereError or another ValueError is the command's fault, a
BridgeError is the bridge's trouble; who gave the command is told either."""


class NotThereError(ValueError):
    """What is asked for is not there."""


async def answered(handler: Handler, command: Mapping[str, Any]) -> web.Response:
    """Return the answer of `handler`, or what went wrong."""
    try:
        text = await _written(await handler(command))
        return web.Response(text=text, content_type="application/json")
    except NotThereError as error:
        return fault(404, str(error))
    except ValueError as error:
        return fault(400, str(error))
    except BridgeError as error:
        return fault(503, str(error))
    except Exception as error:  # noqa: BLE001 - told here and there; nobody else would hear of it
        _log.exception("a command failed by a defect")
        return fault(500, f"a defect: {type(error).__name__}: {error}; the bridge's log tells more")


async def command_in(request: web.Request) -> Mapping[str, Any]:
    """Return the command in the body. Raises ValueError where it is none, HTTPRequestEntityTooLarge."""
    try:
        document = await request.json()
    except (LookupError, RecursionError) as error:  # no such charset, or brackets without end
        raise ValueError(f"the command can't be read: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise ValueError("expected one JSON object")  # noqa: TRY004 - a mistake of who asks, as all others
    return document


async def _written(document: Mapping[str, Any]) -> str:
    """Write `document` as JSON, in pieces between which others have their turn: it may be half a megabyte."""
    parts, began = [], perf_counter()
    for key, value in document.items():
        if isinstance(value, dict):
            pieces = [(f"{json.dumps(name)}: ", each) for name, each in value.items()]
        elif isinstance(value, list):
            pieces = [("", each) for each in value]
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
            continue
        written = []
        for name, each in pieces:
            written.append(name + json.dumps(each))
            if perf_counter() - began > _TURN:
                await asyncio.sleep(0)
                began = perf_counter()
        inside = ", ".join(written)
        parts.append(f"{json.dumps(key)}: " + (f"{{{inside}}}" if isinstance(value, dict) else f"[{inside}]"))
    return "{" + ", ".join(parts) + "}"


def too_long() -> web.Response:
    """Return what is told of a command that is longer than `LONGEST_COMMAND`."""
    return fault(413, f"the command is longer than {LONGEST_COMMAND} bytes: give it in parts")


def fault(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer that tells what is wrong."""
    return web.json_response({"error": message}, status=status, headers=headers)
