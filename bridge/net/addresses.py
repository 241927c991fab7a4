"""The address of a server as it is written: HOST:PORT, the host's IPv6 address in brackets."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:,\[\]]+):(\d{1,5})")


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port. Raise ValueError where it is no address."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError("expected HOST:PORT")
    return found[1].strip("[]"), int(found[2])
