"""The certificate that we show to others: until when it is good, and what they say of it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from bridge.core.ports import Severity

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 60.0
_SOON_SECONDS = 14 * 86_400.0
_SOON_PART = 6
"""Of a certificate's life its last part is soon too: two hours of a grid proxy's twelve."""
_REFUSAL = re.compile(
    r"alert[ _](certificate[ _](?:expired|revoked|required|unknown)|unknown[ _]ca|bad[ _]certificate"
    r"|unsupported[ _]certificate|no[ _]certificate)",
    re.IGNORECASE,
)
"""Alerts of TLS about the certificate of who gets them (RFC 8446, 6.2), as OpenSSL writes them."""
_LONGEST_STORY = 16
"""Errors that one came of."""
_MEANINGS = {
    "certificate expired": "it has expired",
    "certificate revoked": "it is revoked",
    "certificate required": "it wants one, and gets none",
    "certificate unknown": "it has expired, or is signed by an authority that the other side does not know",
    "unknown ca": "it does not know the authority that signed it",
}

REFUSED = "the other side refuses our certificate"
REMEDY = "give or renew the client certificate (`cert_file`), or have the other side trust its authority"


class Validity(NamedTuple):
    """From when to when a certificate is good, in seconds since 1970 UTC."""

    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A certificate of ours, in a file that somebody renews."""

    file: Path
    password: Callable[[], str | None] | None = None
    """Gives the password of a PKCS#12 file; None for PEM. May raise CredentialError."""

    def validity(self) -> Validity:
        """Return from when to when it is good, as is each that signed it but the authorities: a proxy is not
        longer good than its user's certificate.

        Reads the file. Raises OSError, ValueError, CredentialError.
        """
        # Loaded by who has a certificate: it takes 8 MiB and 0.1 s.
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

        raw = self.file.read_bytes()
        if self.password is None:
            chain = x509.load_pem_x509_certificates(raw)
        else:
            password = self.password()
            store = load_pkcs12(raw, None if password is None else password.encode("utf-8"))
            chain = [one.certificate for one in (store.cert, *store.additional_certs) if one is not None]
        ours = [chain[0], *(one for one in chain[1:] if not _is_authority(one))]
        return Validity(
            max(one.not_valid_before_utc.timestamp() for one in ours),
            min(one.not_valid_after_utc.timestamp() for one in ours),
        )

    def look(self) -> tuple[Validity | None, Severity, str]:
        """Return its validity, and how well it is, with its file and date for a person."""
        try:
            found = self.validity()
        except Exception as error:  # noqa: BLE001 - whatever is in the file, it stops nothing else
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return None, Severity.PROBLEM, f"our certificate {self.file} can't be read: {reason}"
        now, until = time.time(), _date(found.ends)
        if found.ends <= now:
            return found, Severity.PROBLEM, f"our certificate {self.file} expired on {until}"
        if now < found.begins:
            told = f"our certificate {self.file} is not valid before {_date(found.begins)}"
            return found, Severity.PROBLEM, f"{told}: is this machine's clock right?"
        if found.ends - now < min(_SOON_SECONDS, (found.ends - found.begins) / _SOON_PART):
            return found, Severity.WARNING, f"our certificate {self.file} expires soon, on {until}"
        return found, Severity.OK, f"our certificate {self.file} is valid until {until}"


class Watch:
    """Looks at certificates of ours once a minute, so that who asks need not wait for a disk."""

    def __init__(self, certificates: Mapping[str, OwnCertificate]) -> None:
        """Watch `certificates`, by the part that shows them: `source uploads`, `http`."""
        self._certificates = certificates
        self._found: dict[str, Validity | None] = {}
        self._told: dict[str, tuple[Severity, str]] = {}

    @property
    def keys(self) -> Collection[str]:
        """The parts that show a certificate."""
        return self._certificates.keys()

    def seconds_left(self, key: str) -> float:
        """Return the seconds until it expires, below 0 since it has; NaN while it can't be read."""
        found = self._found.get(key)
        return math.nan if found is None else found.ends - time.time()

    def lifetime(self, key: str) -> float | None:
        """Return the seconds from its beginning to its end; None while it can't be read."""
        found = self._found.get(key)
        return None if found is None else found.ends - found.begins

    def problems(self, key: str) -> Sequence[str]:
        """Return why it is no good, for readiness; empty while it is."""
        severity, message = self._told.get(key, (Severity.OK, ""))
        return [message] if severity is Severity.PROBLEM else []

    async def run(self) -> None:
        """Look until cancelled, and log what changes for the worse."""
        while self._certificates:
            for key, certificate in self._certificates.items():
                self._found[key], severity, message = await asyncio.to_thread(certificate.look)
                if self._told.get(key) != (severity, message):
                    self._told[key] = severity, message
                    if severity is Severity.PROBLEM:
                        _log.error("certificate", part=key, detail=message)
                    elif severity is Severity.WARNING:
                        _log.warning("certificate", part=key, detail=message)
            await asyncio.sleep(_LOOK_SECONDS)


def refusal(error: BaseException | str) -> str | None:
    """Return what the other side says of our certificate, if `error`, or what it came of, is about that."""
    for text in [error] if isinstance(error, str) else [str(one) for one in _came_of(error)]:
        if (found := _REFUSAL.search(text)) is not None:
            word = found[1].lower().replace("_", " ")
            return f"{REFUSED}: {_MEANINGS.get(word, word)}"
    return None


def _came_of(error: BaseException) -> Iterator[BaseException]:
    """Give `error` and what it came of; one that was raised again and again may have come of itself."""
    found: BaseException | None = error
    for _ in range(_LONGEST_STORY):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _is_authority(certificate: object) -> bool:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)  # noqa: S101 - the type is not loaded above
    with suppress(x509.ExtensionNotFound, ValueError):
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return False


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
