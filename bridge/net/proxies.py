"""Which HTTP proxy stands before a URL: one rule for every client that speaks HTTP.

The libraries have a rule each: aiohttp and botocore know no `ALL_PROXY`, aiohttp takes no proxy without a
scheme, and reads passwords of ~/.netrc, which nobody configured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from yarl import URL

from bridge.core.errors import Mistake

_EXPECTED = "expected http://HOST:PORT or https://HOST:PORT, perhaps with USER:PASSWORD@ before the host"


def proxy_for(url: URL | str, environ: Mapping[str, str] = os.environ) -> URL | None:
    """Return the proxy that the environment has for `url`; None where it is to be asked directly.

    Raises ValueError when the variable names no HTTP proxy.
    """
    url = URL(url)
    found = _variable(environ, f"{url.scheme}_proxy") or _variable(environ, "all_proxy")
    if found is None or not found[1] or _is_excepted(url, environ):
        return None
    return _proxy(found[1])


def place_of(proxy: URL) -> str:
    """Return where `proxy` is, for a person: without its password."""
    return f"{proxy.scheme}://{proxy.host_subcomponent}:{proxy.port}"


def mistakes_in(environ: Mapping[str, str]) -> list[Mistake]:
    """Return what is wrong with the variables that name proxies, without their text, which may be secret."""
    mistakes = {}
    for scheme in ("http", "https"):
        found = _variable(environ, f"{scheme}_proxy") or _variable(environ, "all_proxy")
        if found is not None and found[1]:
            try:
                _proxy(found[1])
            except ValueError as error:
                mistakes[found[0]] = Mistake(f"environment variable {found[0]}", "", str(error))
    return list(mistakes.values())


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """Return the variable's name as it is written and its value; lower case goes first, also when empty."""
    for written in (name, name.upper()):
        if (value := environ.get(written)) is not None:
            return written, value.strip()
    return None


def _proxy(value: str) -> URL:
    try:
        proxy = URL(value if "://" in value else f"http://{value}")
        if proxy.scheme in ("http", "https") and proxy.host and proxy.port:
            return proxy.with_path("/")
        kind = f"; {proxy.scheme} proxies are not supported" if proxy.scheme not in ("http", "https") else ""
    except ValueError:
        kind = ""
    raise ValueError(f"{_EXPECTED}{kind}") from None


def _is_excepted(url: URL, environ: Mapping[str, str]) -> bool:
    """Tell whether `no_proxy` names the host: itself, a domain above it, its network, perhaps with a port."""
    host = (url.host or "").lower().rstrip(".")
    _, entries = _variable(environ, "no_proxy") or ("", "")
    for entry in entries.lower().replace(",", " ").split():
        if entry == "*":
            return True
        name, port = _split(entry)
        if port is not None and port != str(url.port):
            continue
        name = name.removeprefix("*").strip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
        try:
            if ip_address(host) in ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def _split(entry: str) -> tuple[str, str | None]:
    """Split HOST:PORT or [ADDRESS]:PORT; an address of IPv6 without brackets has no port."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":") or None
    name, colon, port = entry.partition(":")
    return (name, port) if colon and port.isdigit() else (entry, None)
