"""Who asks: a password, a token, a certificate, or nobody."""

from __future__ import annotations

import base64
import binascii

from aiohttp import web

from bridge.sandbox.dcache.errors import RefusalError
from bridge.sandbox.dcache.settings import Settings

_USER = web.RequestKey("user", str)
_CERTIFICATE_USER = "bridge"
"""Whom a verified client certificate logs in."""


def log_in(request: web.Request, settings: Settings) -> None:
    """Note the request's user, if it has one. Raises RefusalError (401) for a wrong login."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    user: str | None = None
    match scheme.lower():
        case "":
            # Without a login the request is anonymous, and each resource decides.
            if request.transport is None or not request.transport.get_extra_info("peercert"):
                return
            user = _CERTIFICATE_USER
        case "basic":
            user = _by_password(credentials, settings)
        case "bearer":
            user = settings.tokens.get(credentials.strip())
    if user is None:
        raise RefusalError(401)
    request[_USER] = user


def user_of(request: web.Request) -> str:
    """The user. Raises RefusalError (401) for an anonymous request."""
    if _USER not in request:
        raise RefusalError(401)
    return request[_USER]


def _by_password(credentials: str, settings: Settings) -> str | None:
    try:
        name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name if settings.users.get(name) == password else None
