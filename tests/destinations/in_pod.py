"""The way of a payload after it left: Kubernetes, a real shell, and the supervisor's reading."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bridge.core.event import Event
from bridge.destinations.oscar.payload import (
    encode,
)

SECRET = "hunter2 is the pod's secret"
# /bin/sh is what OSCAR runs; it is dash or bash in most images, and often another name of one found already.
FOUND = [found for shell in ("/bin/sh", "dash", "bash") if (found := shutil.which(shell))]
SHELLS = list({Path(found).resolve(): Path(found).name for found in FOUND}.values())
HOSTILE_FILES = ["-n", "[", "*", "1", '{"a":1}', '{"a":"u0024"}', '{"a":2,"b":"x"}', '{"glob":"x"}', "2]}"]


def event(data: bytes, **more: Any) -> Event:
    return Event(id="uploads/0/17", source="uploads", type="kafka.record", data=data, **more)


def body(data: bytes | str, **how: Any) -> str:
    return encode(event(data.encode() if isinstance(data, str) else data), **how).decode("ascii")


def kubernetes(value: str, environment: dict[str, str]) -> str:
    """Expand an environment value as Kubernetes does (third_party/forked/golang/expansion)."""

    def expansion(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", expansion, value)


def in_pod(value: str, shell: str, directory: Path) -> bytes:
    """Give what `supervisor` reads in OSCAR's pod, in a working directory with files of unlucky names."""
    for name in HOSTILE_FILES:
        (directory / name).touch()
    environment = {"SECRET": SECRET, "PATH": "/usr/bin:/bin"}
    environment["EVENT"] = kubernetes(value, environment)
    command = [shutil.which(shell) or shell, "-c", "echo $EVENT | cat"]
    return subprocess.run(command, env=environment, cwd=directory, check=True, stdout=subprocess.PIPE).stdout


def supervisor(stdin: bytes) -> dict[str, Any] | bytes:
    """Give the object the supervisor reads or the bytes it saves for the script; fail where it would fail."""
    text = stdin.decode("utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        return base64.b64decode(text)
    assert isinstance(value, dict), "the supervisor fails on other JSON"
    return value


def arrives(data: bytes, shell: str, directory: Path, **how: Any) -> dict[str, Any] | bytes:
    return supervisor(in_pod(body(data, **how), shell, directory))
