"""Callers that open a connection and ask nothing, or not all."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def half_a_request(
    stack: ExitStack, url: str, said: bytes = b"GET /livez HTTP/1.1\r\nHost: "
) -> socket.socket:
    caller = stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))))
    caller.sendall(said)
    caller.setblocking(False)
    return caller


def is_open(caller: socket.socket) -> bool:
    try:
        return caller.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
