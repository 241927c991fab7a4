"""TLS that keeps up with its files: our certificate is renewed, and certificates of servers are revoked."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from cryptography import x509

_log = structlog.get_logger(__name__)

_REVOKED = 23
"""X509_V_ERR_CERT_REVOKED (openssl/x509_vfy.h)."""
_LONGEST_CHAIN = 8
_PEM = b"-----BEGIN X509 CRL-----"


class Context(ssl.SSLContext):
    """A context that looks at its files for each connection."""

    _shown: tuple[Sequence[Path], Callable[[], None]] | None = None
    _as_loaded: tuple[int, ...] = ()
    _revocations: Revocations | None = None

    def show(self, files: Sequence[Path], load: Callable[[], None]) -> None:
        """Show what `load` puts into this context, and call it again when one of `files` has changed.

        Raises what `load` raises, the first time. Later the former certificate goes on being shown.
        """
        self._as_loaded = _changes(files)
        load()
        self._shown = files, load

    def refuse_revoked(self, directory: Path) -> None:
        """Refuse servers whose certificate is revoked, as far as `directory` has lists of those."""
        if any(directory.glob("*.r[0-9]")):
            self._revocations = Revocations(directory)
            self.sslobject_class = _Checked

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection."""
        if self._shown is not None:
            files, load = self._shown
            try:
                found = _changes(files)
                if found != self._as_loaded:
                    load()
                    self._as_loaded = found
            except Exception as error:  # noqa: BLE001 - half written, perhaps; the former one may be good still
                _log.warning("certificate", detail=f"{files[0]} can't be read again: {error}")
        return super().wrap_bio(*arguments, **options)


class _Checked(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        context = self.context
        if not isinstance(context, Context) or context._revocations is None:  # noqa: SLF001 - its own half
            return
        try:
            context._revocations.check(self.getpeercert(binary_form=True) or b"")  # noqa: SLF001
        except ssl.SSLError:
            raise
        except Exception as error:  # noqa: BLE001 - OpenSSL has verified it, and another error ends no handshake
            _log.warning("certificate not looked up", detail=f"{type(error).__name__}: {error}")


class Revocations:
    """The revocation lists in a directory of authorities: `NAME.r0` belongs to the authority `NAME.0`.

    OpenSSL's own check wants a list of every authority, and refuses all servers of one that has none, or an
    old one. Here such an authority's certificates are taken, as dCache takes them (its `crl-mode` is
    IF_VALID by default); an old list is told in the log.
    """

    def __init__(self, directory: Path) -> None:
        from cryptography import x509

        self._directory = directory
        self._authorities: dict[bytes, list[tuple[str, x509.Certificate]]] = {}
        """Authorities with the names of their files, by subject."""
        self._lists: dict[Path, tuple[int, x509.CertificateRevocationList | None]] = {}
        """What was read, by when the file had changed."""
        self._told: set[Path] = set()
        for path in sorted(directory.iterdir()):
            if path.suffix in (".pem", ".crt", ".cer") or path.suffix[1:].isdigit():
                with suppress(Exception):  # a key, or what OpenSSL alone can read
                    for found in x509.load_pem_x509_certificates(path.read_bytes()):
                        subject = found.subject.public_bytes()
                        self._authorities.setdefault(subject, []).append((path.stem, found))

    def check(self, certificate: bytes) -> None:
        """Raise ssl.SSLCertVerificationError when `certificate` (DER), or what signed it, is revoked."""
        from cryptography import x509

        found = x509.load_der_x509_certificate(certificate)
        for _ in range(_LONGEST_CHAIN):
            authorities = self._authorities.get(found.issuer.public_bytes(), [])
            for revoked in self._lists_of(authorities):
                if revoked.get_revoked_certificate_by_serial_number(found.serial_number) is not None:
                    error = ssl.SSLCertVerificationError(1, "certificate revoked")
                    error.verify_code = _REVOKED
                    error.verify_message = f"{found.subject.rfc4514_string()} is revoked by its authority"
                    raise error
            if not authorities or found.issuer == found.subject:
                return
            found = authorities[0][1]

    def _lists_of(
        self, authorities: Sequence[tuple[str, x509.Certificate]]
    ) -> Iterator[x509.CertificateRevocationList]:
        for path in {
            path for stem, _ in authorities for path in self._directory.glob(f"{escape(stem)}.r[0-9]")
        }:
            found = self._read(path)
            if found is None or not any(_is_signed_by(found, authority) for _, authority in authorities):
                self._tell(path, "is no revocation list of its authority")
            elif found.next_update_utc is not None and found.next_update_utc.timestamp() < time.time():
                self._tell(path, f"should have been replaced by {found.next_update_utc:%Y-%m-%d}")
            else:
                self._told.discard(path)
                yield found

    def _read(self, path: Path) -> x509.CertificateRevocationList | None:
        from cryptography import x509

        with suppress(OSError):
            changed = path.stat().st_mtime_ns
            if self._lists.get(path, (0, None))[0] != changed:
                raw = path.read_bytes()
                found = None
                with suppress(Exception):
                    found = x509.load_pem_x509_crl(raw) if _PEM in raw else x509.load_der_x509_crl(raw)
                self._lists[path] = changed, found
            return self._lists[path][1]
        return None

    def _tell(self, path: Path, trouble: str) -> None:
        if path not in self._told:
            self._told.add(path)
            _log.warning("revocation list not used", detail=f"{path} {trouble}")


def _is_signed_by(found: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    with suppress(Exception):  # of another kind of key, or by an algorithm that is not known here
        return found.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # else TypeError
    return False


def _changes(files: Sequence[Path]) -> tuple[int, ...]:
    return tuple(file.stat().st_mtime_ns for file in files)
