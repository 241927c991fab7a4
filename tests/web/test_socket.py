"""The door for commands: what a client does wrong, and what goes wrong behind it, is told in a line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import StoreError
from bridge.web import socket
from bridge.web.socket import ask, listen


async def echo(command: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"got": len(json.dumps(command))}


def failing(error: Exception) -> Callable[[Mapping[str, Any]], Any]:
    async def fail(_command: Mapping[str, Any]) -> Mapping[str, Any]:
        raise error

    return fail


async def told(state_dir: Path, command: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return await asyncio.to_thread(ask, state_dir, command)


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with listen(tmp_path, echo):
        assert await told(tmp_path, {"do": "x"}) == {"got": 11}
    assert await told(tmp_path, {"do": "x"}) is None


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            StoreError("the store can't be written"),
            OSError,
            "the bridge that runs: the store can't be written",
        ),
        (ZeroDivisionError("division"), OSError, "a defect: ZeroDivisionError: division"),
        (ValueError("no such command"), ValueError, "no such command"),
        (RecursionError(), OSError, "a defect: RecursionError"),
    ],
)
async def test_what_goes_wrong_behind_the_door_is_told_in_a_line(
    tmp_path: Path, error: Exception, kind: type[Exception], text: str
) -> None:
    async with listen(tmp_path, failing(error)):
        with pytest.raises(kind, match=text):
            await told(tmp_path, {"do": "x"})


async def test_an_enormous_command_is_refused_and_told_so(tmp_path: Path) -> None:
    async with listen(tmp_path, echo):
        with pytest.raises(ValueError, match="longer than 1048576 bytes: give it in parts"):
            await told(tmp_path, {"numbers": list(range(200_000))})
        assert await told(tmp_path, {"do": "x"}) == {"got": 11}


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 500 X\r\nContent-Length: 7\r\n\r\n500 Int", b"HTTP/1.1 200 OK\r\n\r\n[1]"]
)
async def test_an_answer_that_is_none_of_ours_is_told_with_its_status(tmp_path: Path, answer: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.write_eof()
        await reader.read()  # all that was sent, else the answer would be lost with it
        writer.close()

    async with await asyncio.start_unix_server(other, tmp_path / socket.FILE):
        with pytest.raises(OSError, match=r"can't be understood \(status \d+\)"):
            await told(tmp_path, {})


async def test_a_bridge_that_ends_while_it_is_asked_is_told(tmp_path: Path) -> None:
    async def gone(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(gone, tmp_path / socket.FILE):
        with pytest.raises(OSError, match="broke off"):
            await told(tmp_path, {})


async def test_a_bridge_that_gives_no_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "_ANSWER_SECONDS", 0.05)
    forever = asyncio.Event()

    async def wait(_command: Mapping[str, Any]) -> Mapping[str, Any]:
        await forever.wait()
        return {}

    async with listen(tmp_path, wait):
        with pytest.raises(OSError, match="no answer within"):
            await told(tmp_path, {})
        forever.set()


@pytest.mark.parametrize(
    "said",
    [b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"],
)
async def test_a_client_that_does_not_give_its_command_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(socket, "_COMMAND_SECONDS", 0.05)
    async with listen(tmp_path, echo):
        reader, writer = await asyncio.open_unix_connection(tmp_path / socket.FILE)
        writer.write(said)
        async with asyncio.timeout(30):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()


async def test_a_command_that_takes_long_is_not_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "_COMMAND_SECONDS", 0.05)

    async def slow(_command: Mapping[str, Any]) -> Mapping[str, Any]:
        await asyncio.sleep(0.2)
        return {"done": True}

    async with listen(tmp_path, slow):
        assert await told(tmp_path, {}) == {"done": True}
