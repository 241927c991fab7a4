"""Servers that come as packages of Debian: installed when they are missing and can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_INSTALL_SECONDS = 600


def need(package: str, path: str) -> None:
    """Return once `path` of `package` is there; skip the test when it can't be installed here.

    The packages' own services are not wanted: a policy keeps them from being started by the installation.
    """
    if Path(path).exists():
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"{package} is a package of Debian, and there is no apt-get here")
    become: list[str] = []
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if sudo is None or subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode:
            pytest.skip(f"{package} is not installed, and neither root nor sudo without a password is there")
        become = [sudo, "-n"]
    install = [*become, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "install", "-y"]
    install += ["--no-install-recommends", package]
    said = _run(install)
    if not Path(path).exists():  # perhaps the lists are missing, or old
        _run([*become, "apt-get", "update"])
        said = _run(install)
    if not Path(path).exists():
        pytest.skip(f"{package} can't be installed here: {said[-300:]}")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    return done.stdout + done.stderr
