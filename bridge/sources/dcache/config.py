"""What `type: dcache` takes in the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bridge.credentials import BasicAuth, OidcAuth
from bridge.net.certificates import OwnCertificate
from bridge.sources import SourceConfig
from bridge.values import (
    CertifiedKey,
    HttpUrl,
    Model,
    Rate,
    Seconds,
    Secret,
    SecretFile,
    Tls,
    exactly_one,
)

Flag = Literal[
    "IN_ACCESS",
    "IN_ATTRIB",
    "IN_CLOSE_NOWRITE",
    "IN_CLOSE_WRITE",
    "IN_CREATE",
    "IN_DELETE",
    "IN_MODIFY",
    "IN_MOVED_FROM",
    "IN_MOVED_TO",
    "IN_OPEN",
]
"""What dCache tells of a directory's entries (AddWatchFlag.java)."""


def _path(value: str) -> str:
    parts = value.split("/")[1:]
    if not value.startswith("/") or (value != "/" and {"", ".", ".."} & set(parts)):
        raise ValueError(f"expected an absolute path without a last slash, such as /data/in, found {value!r}")
    return value


def _pattern(value: str) -> str:
    if not value.strip("/") or value.startswith("/"):
        raise ValueError(
            f"expected a pattern of a name, such as *.nc, or of a path as seen from the watched one, such as "
            f"raw/*.nc, found {value!r}"
        )
    return value


class BearerAuth(Model):
    """A token that somebody else renews: a macaroon, or an OIDC access token."""

    type: Literal["bearer"]
    token: Secret | None = None
    token_file: SecretFile | None = None
    """Read again when it changes, and when the token is refused."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        exactly_one(self, "token")
        return self


class X509Auth(CertifiedKey):
    """A client certificate, or a proxy certificate."""

    type: Literal["x509"]


Pattern = Annotated[str, AfterValidator(_pattern)]


class DcacheConfig(SourceConfig):
    """Watches directories of a dCache by its storage events, and finds by listing what they did not tell."""

    type: Literal["dcache"]
    endpoint: HttpUrl
    """The frontend's REST API, such as https://dcache.example.org:3880/api/v1."""
    auth: Annotated[BasicAuth | BearerAuth | OidcAuth | X509Auth, Field(discriminator="type")]
    tls: Tls = Tls()
    paths: tuple[Annotated[str, AfterValidator(_path)], ...] = Field(min_length=1)
    """Directories to watch, as this user sees them."""
    recursive: bool = True
    """What is below them too."""
    depth: int | None = Field(default=None, ge=1)
    """How many levels of directories below a path; all when not given."""
    include: tuple[Pattern, ...] = ()
    """Only files that one of these patterns fits: `*.nc` a name, `raw/*.nc` a path below the watched one."""
    exclude: tuple[Pattern, ...] = ()
    """No files that one of these patterns fits, and nothing in directories that one fits."""
    flags: tuple[Flag, ...] = Field(default=("IN_CLOSE_WRITE", "IN_MOVED_TO"), min_length=1)
    """What makes an event."""
    renames: Literal["ignore", "arrival"] = "ignore"
    """Whether a file that had entered is one again under a new name."""
    first_start: Literal["now", "everything"] = "now"
    """What of the files that are there before the first start: skip them, or let them enter."""
    settle: Seconds | None = None
    """How long a file must have been left alone before it enters; null lets it enter when it is closed."""
    client_id: str = Field(default="oscar-bridge", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Of its channel; a suffix kept in `state_dir` makes it this replica's own."""
    request_rate: Annotated[Rate, Field(le=1000)] = 200.0
    """Requests begun in time, of all kinds. dCache blocks who makes more than 250 a second by default."""
    relist: Annotated[Seconds, Field(ge=60)] = 86400.0
    """How often all is listed, though nothing is known to be missed."""

    @model_validator(mode="after")
    def _paths_stand_apart(self) -> Self:
        for path in self.paths:
            if self.paths.count(path) > 1:
                raise ValueError(f"expected each of `paths` once, but {path} is given twice")
            above = next((one for one in self.paths if one != path and _is_below(path, one)), None)
            if self.recursive and above is not None:
                raise ValueError(f"{path} is below {above}, which is watched with all below it: remove it")
        if self.depth is not None and not self.recursive:
            raise ValueError("`depth` means nothing with `recursive: false`; remove one or the other")
        return self

    @model_validator(mode="after")
    def _x509_needs_tls(self) -> Self:
        if isinstance(self.auth, X509Auth) and not self.endpoint.startswith("https:"):
            raise ValueError("`auth` of type x509 needs an https `endpoint`")
        return self

    def own_certificate(self) -> OwnCertificate | None:
        return OwnCertificate(self.auth.cert_file) if isinstance(self.auth, X509Auth) else None


def _is_below(path: str, other: str) -> bool:
    return other == "/" or path.startswith(other + "/")
