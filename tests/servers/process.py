"""A server of the tests: a process with a directory of its own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_START_SECONDS = 240.0
"""RabbitMQ has taken more than a minute on a machine with many things to do."""


def listens(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class _Elsewhere:
    """A process that another one than this has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> None:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            select.select([descriptor], [], [], timeout)
            os.close(descriptor)


class Server(ABC):
    """One process at a time. What it has in `home` outlives a restart of the same object.

    A copy by pickle, in another process too, stands for the same server and can end it.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        self._process: subprocess.Popen[bytes] | _Elsewhere | None = None

    def __getstate__(self) -> dict[str, Any]:
        process = self._process
        return {**self.__dict__, "_process": None if process is None else _Elsewhere(process.pid)}

    @abstractmethod
    def start(self) -> None:
        """Start the server and return once it listens. Raises RuntimeError when it does not."""

    def run(
        self, command: Sequence[str | Path], ports: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        """Do what `start` says, by `command`."""
        out = self.home / "out"
        with out.open("ab") as file:
            process = subprocess.Popen(command, env=environment, cwd=self.home, stdout=file, stderr=file)
        self._process = process
        deadline = time.monotonic() + _START_SECONDS
        while not all(listens(port, self.host) for port in ports):
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command[0]} does not listen: {out.read_text()[-3000:]}")
            time.sleep(0.02)

    def stop(self, *, kill: bool = True) -> None:
        """End the server: by SIGKILL, or in order."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(30)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.home)
