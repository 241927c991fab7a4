"""A small OpenID provider: what OSCAR's users bring their tokens from."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from bridge.sandbox.oscar.faults import USERINFO, Faults
from bridge.sandbox.oscar.settings import Settings

GROUPS = ("sandbox",)
"""The virtual organisations that may use the cluster (`OIDC_GROUPS`)."""


@dataclass(frozen=True, slots=True)
class User:
    """What UserInfo tells of the owner of a token."""

    subject: str
    groups: tuple[str, ...]


class UserInfoError(Exception):
    """The issuer does not tell the user: its status and text, as go-oidc puts them."""


class UnreadableTokenError(Exception):
    """What golang-jwt says about a token that is no JWT."""


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> dict[str, Any]:
    document = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document


class Oidc:
    """Gives refresh and access tokens, and knows which are good.

    Tokens are JWTs signed with HS256 under a key that nobody else has.
    """

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self.issuer = ""
        """The cluster's own URL, known once it listens."""
        self.refreshes = 0
        """Refresh grants that were answered with a token."""
        self.refused = 0
        """Refresh grants that were refused."""
        self.asked = 0
        """How often OSCAR asked for the user of an access token."""
        self._settings = settings
        self._faults = faults
        self._cache: dict[str, User] = {}
        """OSCAR's own (`tokenCache`), of tokens that it has accepted."""
        self._key = secrets.token_bytes(32)
        self._grants: dict[str, User] = {}
        self._revoked: set[str] = set()
        self._left: set[str] = set()

    def grant(self, subject: str, groups: tuple[str, ...] | None = None) -> str:
        """A refresh token for a user, by default a member of the cluster's groups."""
        token = secrets.token_urlsafe(24)
        self._grants[token] = User(subject, GROUPS if groups is None else groups)
        return token

    def access_token(
        self,
        subject: str,
        *,
        groups: tuple[str, ...] | None = None,
        seconds: float | None = None,
        issuer: str | None = None,
    ) -> str:
        """An access token; `seconds` may be negative for one that has expired."""
        lifetime = self._settings.access_token_seconds if seconds is None else seconds
        claims = {
            "iss": self.issuer if issuer is None else issuer,
            "sub": subject,
            "group_membership": list(GROUPS if groups is None else groups),
            "iat": int(time.time()),
            "exp": time.time() + lifetime,
            "jti": secrets.token_hex(8),
        }
        signed = _encode(b'{"alg":"HS256","typ":"JWT"}') + "." + _encode(json.dumps(claims).encode())
        return f"{signed}.{self._signature(signed)}"

    def revoke(self, token: str) -> None:
        """Refuse an access or refresh token from now on."""
        self._revoked.add(token)
        self._grants.pop(token, None)

    def leave(self, subject: str) -> None:
        """Take a user out of all groups; tokens given before stay good."""
        self._left.add(subject)

    def issuer_of(self, token: str) -> str:
        """`GetIssuerFromToken` of `pkg/utils/auth/oidc.go`: reads without verifying."""
        parts = token.split(".")
        if len(parts) != 3:
            raise UnreadableTokenError("token is malformed: token contains an invalid number of segments")
        try:
            _decode(parts[0])
            return str(_decode(parts[1]).get("iss", ""))
        except (ValueError, TypeError) as error:
            raise UnreadableTokenError(f"token is malformed: could not JSON decode claim: {error}") from error

    async def user_info(self, token: str) -> User:
        """`GetUserInfo` of `pkg/utils/auth/oidc.go`: OSCAR asks the issuer. Raises UserInfoError."""
        self.asked += 1
        fault = self._faults.rules.get(USERINFO)
        if fault is not None:
            if fault.delay_seconds:
                await asyncio.sleep(fault.delay_seconds)
            if (status := self._faults.status(fault)) is not None:
                raise UserInfoError(f"{status} {http.client.responses.get(status, '')}: ")
        user = self._user_of(token)
        if user is None:
            raise UserInfoError('401 Unauthorized: {"error": "invalid_token"}')
        return user

    async def authorised(self, token: str) -> bool:
        """`IsAuthorised` of `pkg/utils/auth/oidc.go`: verifies the token, and asks for its user once."""
        if not self._verified(token):
            return False
        if token not in self._cache:
            try:
                self._cache[token] = await self.user_info(token)
            except UserInfoError:
                return False
            self._cache = {kept: user for kept, user in self._cache.items() if self._verified(kept)}
        return self.enrolled(self._cache[token])

    def enrolled(self, user: User) -> bool:
        """`UserInOneGroup`."""
        return bool(set(user.groups) & set(GROUPS))

    def _verified(self, token: str) -> bool:
        """Whether it is of this issuer and has not expired: a revocation is not seen."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature, self._signature(signed)):
            return False
        return float(_decode(signed.split(".")[1])["exp"]) > time.time()

    def _user_of(self, token: str) -> User | None:
        if token in self._revoked or not self._verified(token):
            return None
        claims = _decode(token.split(".")[1])
        groups = () if claims["sub"] in self._left else tuple(claims["group_membership"])
        return User(claims["sub"], groups)

    def _signature(self, signed: str) -> str:
        return _encode(hmac.new(self._key, signed.encode("latin-1"), hashlib.sha256).digest())

    async def token(self, request: web.Request) -> web.Response:
        """`POST /oidc/token` with the refresh-token grant (RFC 6749, sections 6 and 5.2)."""
        form = await request.post()
        if form.get("grant_type") != "refresh_token":
            self.refused += 1
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        refresh_token = str(form.get("refresh_token", ""))
        user = self._grants.get(refresh_token)
        if user is None:
            self.refused += 1
            return web.json_response(
                {"error": "invalid_grant", "error_description": "Invalid refresh token"}, status=400
            )
        if self._settings.rotate_refresh_tokens:
            del self._grants[refresh_token]
            refresh_token = self.grant(user.subject, user.groups)
        self.refreshes += 1
        return web.json_response(
            {
                "access_token": self.access_token(user.subject, groups=user.groups),
                "expires_in": int(self._settings.access_token_seconds),
                "refresh_token": refresh_token,
                "token_type": "Bearer",
                "scope": str(form.get("scope", "openid")),
            }
        )

    async def userinfo(self, request: web.Request) -> web.Response:
        """`GET /oidc/userinfo`."""
        user = self._user_of(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None:
            return web.json_response({"error": "invalid_token"}, status=401)
        return web.json_response({"sub": user.subject, "group_membership": list(user.groups)})

    async def discovery(self, _request: web.Request) -> web.Response:
        """`GET /.well-known/openid-configuration` (OpenID Connect Discovery 1.0)."""
        return web.json_response(
            {
                "issuer": self.issuer,
                "token_endpoint": f"{self.issuer}/oidc/token",
                "userinfo_endpoint": f"{self.issuer}/oidc/userinfo",
                "grant_types_supported": ["refresh_token"],
                "id_token_signing_alg_values_supported": ["HS256"],
                "token_endpoint_auth_methods_supported": ["none"],
            }
        )
