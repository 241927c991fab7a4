"""A server of the tests: a process with a directory of its own."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_START_SECONDS = 60.0


def listens(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Server(ABC):
    """One process at a time. What it has in `home` outlives a restart of the same object."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix=f"{type(self).__name__.lower()}-")
        self.home = Path(self._directory.name)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start the server and return once it listens. Raises RuntimeError when it does not."""

    def run(
        self, command: Sequence[str | Path], ports: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        """Do what `start` says, by `command`."""
        out = self.home / "out"
        with out.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self.home, stdout=file, stderr=file
            )
        deadline = time.monotonic() + _START_SECONDS
        while not all(listens(port, self.host) for port in ports):
            if self._process.poll() is not None or time.monotonic() > deadline:
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
        self._directory.cleanup()
