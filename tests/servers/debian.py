"""Servers that come as packages of Debian.

`python -m tests.servers.debian` installs those that are missing, where it may: `make test` begins with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGES = {
    "rabbitmq-server": Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),
    "activemq": Path("/usr/share/activemq/lib"),
    "chromium-headless-shell": Path("/usr/bin/chromium-headless-shell"),
    "prometheus": Path("/usr/bin/promtool"),
}
"""What is there once a package is installed."""
_INSTALL_SECONDS = 600


def need(package: str) -> None:
    """Skip the test where `package` is not installed."""
    if not PACKAGES[package].exists():
        pytest.skip(
            f"the Debian package {package} is not installed (`python -m tests.servers.debian` does it)"
        )


def install() -> str | None:
    """Install what is missing; give why that can't be. The packages' own services are not started."""
    missing = [package for package, path in PACKAGES.items() if not path.exists()]
    if not missing:
        return None
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    become: list[str] = []
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if sudo is None or subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode:
            return "that takes root, or sudo without a password"
        become = [sudo, "-n"]
    apt = [*become, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]
    said = ""
    for commands in (_installing(missing), [["update"], *_installing(missing)]):
        # The lists may be missing, or old. Each by itself: one that a release lacks keeps no other away.
        for command in commands:
            done = subprocess.run(
                [*apt, *command], capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
            said = done.stdout + done.stderr if done.returncode else said
        if all(PACKAGES[package].exists() for package in missing):
            return None
    return said[-500:]


def _installing(packages: Sequence[str]) -> list[list[str]]:
    return [["install", "-y", "--no-install-recommends", package] for package in packages]


if __name__ == "__main__":
    if (reason := install()) is not None:
        print(f"tests that need {' or '.join(PACKAGES)} will be skipped: {reason}", file=sys.stderr)
