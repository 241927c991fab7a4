"""Where the bridge answers over HTTP, and whom it answers more than whether it is well."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from bridge.core.errors import CredentialError
from bridge.net.certificates import OwnCertificate
from bridge.net.tls import Context
from bridge.values import CertifiedKey, Model, SecretFile, needs_no_files, read_secret

_NAME = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"


def bearer_token(text: str) -> bytes:
    """Return the token in the text of a secret file. Raises ValueError where no header can carry it."""
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("expected a token of ASCII characters without spaces")
    return text.encode("ascii")


class HttpConfig(Model):
    """Where the bridge answers. /livez, /readyz and /metrics need no token, and hold nothing of an event."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address listened on: loopback alone by default."""
    port: int = Field(default=9464, ge=0, le=65535)
    """The TCP port; 0 takes any free one. 9464 is the usual one of Prometheus exporters in OpenTelemetry."""
    token_file: SecretFile | None = None
    """Holds the token that opens the status page and its API; without it there is neither."""
    names: tuple[Annotated[str, Field(pattern=_NAME, max_length=253), AfterValidator(str.lower)], ...] = ()
    """Names by which browsers may call this machine, beside its addresses and `localhost`."""

    tls: CertifiedKey | None = None
    """Answer by TLS alone, with this certificate."""

    @model_validator(mode="after")
    def _token_fits_a_header(self, info: ValidationInfo) -> Self:
        if self.token_file is not None and not needs_no_files(info):
            try:
                bearer_token(read_secret(self.token_file))
            except CredentialError as error:
                raise ValueError(str(error)) from None
            except ValueError as error:
                raise ValueError(f"{error} in {self.token_file}") from None
        return self

    def own_certificate(self) -> OwnCertificate | None:
        """Return the certificate that is shown to callers, if there is one."""
        return None if self.tls is None else OwnCertificate(self.tls.cert_file)

    def context(self) -> Context | None:
        """Make the context for callers; None without TLS. Raises ValueError when the files can't be used."""
        if (tls := self.tls) is None:
            return None
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        files = [tls.cert_file] if tls.key_file is None else [tls.cert_file, tls.key_file]
        context.show(files, lambda: tls.load(context))
        return context

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach it, as far as `host` tells."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
