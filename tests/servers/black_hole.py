"""An address where nobody answers, not even with a refusal."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import EINPROGRESS
from select import select


@contextmanager
def black_hole(host: str, port: int = 0) -> Iterator[int]:
    """Let attempts to connect to `host`:`port` hang while inside; gives the port."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        address = listener.getsockname()
        while True:  # until the queue of connections that nobody accepts is full: the kernel drops the rest
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            assert caller.connect_ex(address) in (0, EINPROGRESS)
            if not select([], [caller], [], 0.2)[1]:
                break
        yield address[1]
