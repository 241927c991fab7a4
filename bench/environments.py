"""Environments that the bench makes: one as a deployment has it, for all that is measured, and the peer's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from bench.interpreter import Interpreter, ask

_ROOT = Path(__file__).parent.parent
_OWN = Path(getattr(sys, "_base_executable", sys.executable))
"""What this environment is made of."""
_SYSTEM = (Path("/usr/local/bin/python3"), Path("/usr/bin/python3"))
_MAKE_SECONDS = 600.0


class NotMadeError(Exception):
    """An environment can't be made: says why, for a person."""


async def deployed() -> Interpreter:
    """Give the interpreter of an environment of requirements.lock alone; make it where there is none.

    It is one with PGO, as those of images and distributions are, where the machine has such. Where the
    environment can't be made, that of development is given, and its text tells why. Raises as `ask` does.
    """
    base = next((one for one in _interpreters() if one.profiled), None) or ask(_OWN)
    wanted = sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        wanted.update((_ROOT / name).read_bytes())
    try:
        python = await made(
            _ROOT / "build" / "bench",
            base.python,
            f"{base.python} {base.name} {wanted.hexdigest()}",
            ("--require-hashes", "--requirement", str(_ROOT / "requirements.lock")),
            ("--no-deps", "--editable", str(_ROOT)),
        )
        return ask(python)._replace(environment="an environment of requirements.lock alone")
    except NotMadeError as error:
        why = f"the environment of development, as one of requirements.lock can't be made: {error}"
        return ask(Path(sys.executable))._replace(environment=why)


def _interpreters() -> Iterator[Interpreter]:
    """Give those that the machine has and the bridge runs in."""
    for path in (_OWN, *_SYSTEM):
        with suppress(OSError, subprocess.SubprocessError):  # it is not there, or too old to answer
            if (found := ask(path)).recent:
                yield found


async def made(directory: Path, python: Path, stamp: str, *installed: Sequence[str]) -> Path:
    """Give the Python of the environment in `directory`, which is made anew unless `stamp` is its own.

    It is one of `python`'s, and has no pip: ours installs what the arguments of each `installed` name. So
    Debian's needs no package for it. Raises NotMadeError.
    """
    own, ready = directory / "bin" / "python", directory / "ready"
    if not ready.exists() or ready.read_text(encoding="utf-8") != stamp:
        await _carry_out(str(python), "-m", "venv", "--clear", "--without-pip", str(directory))
        for arguments in installed:
            pip = (sys.executable, "-m", "pip", "--python", str(own), "install")
            await _carry_out(*pip, "--quiet", "--disable-pip-version-check", *arguments)
        ready.write_text(stamp, encoding="utf-8")
    return own


async def _carry_out(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(_MAKE_SECONDS):
            told, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise NotMadeError(f"`{' '.join(command)}` took more than {_MAKE_SECONDS:.0f} s") from None
    if process.returncode:
        last = told.decode(errors="replace").strip().splitlines()[-1:]
        raise NotMadeError(last[0] if last else f"`{' '.join(command)}` ended with {process.returncode}")
