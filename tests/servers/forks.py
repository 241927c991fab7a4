"""Processes of `oscar-bridge` that begin with its modules loaded: a fork, not a second of imports each."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import walk_packages
from tempfile import TemporaryDirectory

import bridge

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        module.name
        for module in walk_packages(bridge.__path__, "bridge.")
        if not module.name.startswith(("bridge.__main__", "bridge.sandbox", "bridge.testing"))
    ]
)


def _become(
    prelude: str, arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path
) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["oscar-bridge", *arguments]
    try:
        exec(prelude, {})  # noqa: S102 - the tests' own
        from bridge.cli import main

        sys.exit(main())
    except Exception:  # noqa: BLE001 - whatever would end an interpreter
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:  # as an interpreter ends in order; who is forked by multiprocessing ends without that
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


class Forked:
    """One such process; what `subprocess.Popen` has of the same name is the same."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        out: Path,
        err: Path,
        environment: Mapping[str, str],
        prelude: str = "",
    ) -> None:
        self.args = ["oscar-bridge", *arguments]
        self._process = _FORKS.Process(
            target=_become, args=(prelude, arguments, dict(environment), out, err), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run` does with a command whose output is captured."""
    with TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        forked = Forked(arguments, out=out, err=err, environment=environment)
        try:
            status = forked.wait(timeout)
        finally:
            forked.kill()
            forked.wait()
        return subprocess.CompletedProcess(forked.args, status, out.read_text(), err.read_text())
