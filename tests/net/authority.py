"""An authority of a test's own: certificates of any age, revocation lists, servers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


class Authority:
    """Signs what a test asks for."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 24 * HOUR)
            .not_valid_after(NOW + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self, name: str, begins: datetime = NOW - HOUR, ends: datetime = NOW + 12 * HOUR
    ) -> tuple[x509.Certificate, bytes]:
        """Give a certificate for `name` (127.0.0.1 too), and its PEM with key and this authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(IPv4Address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), address]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate, certificate.public_bytes(Encoding.PEM) + secret + self.pem

    def revocations(
        self,
        revoked: Sequence[x509.Certificate],
        until: datetime = NOW + HOUR,
        encoding: Encoding = Encoding.PEM,
    ) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(min(NOW, until) - HOUR)
            .next_update(until)
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(NOW - HOUR)
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding)


def server_context(pem: Path, believes: Authority | None = None) -> ssl.SSLContext:
    """A server that shows `pem`, and wants certificates of clients where it `believes` an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if believes is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=believes.pem.decode())
    return context


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """Say hello to each connection; gives the port, and the names in the certificates that were shown."""
    names: list[str] = []

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert")
        names.append(dict(part[0] for part in shown["subject"])["commonName"] if shown else "")
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], names
    finally:
        server.close()


@asynccontextmanager
async def refusing(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Refuse each connection as `context` has it, with the alert that asyncio's servers do not send."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plug, _ = listener.accept()
                except OSError:
                    return  # closed
                plug.settimeout(10)
                wrapped = context.wrap_socket(plug, server_side=True, do_handshake_on_connect=False)
                with wrapped, suppress(OSError):
                    with suppress(ssl.SSLError):
                        wrapped.do_handshake()
                    with socket.socket(fileno=wrapped.detach()) as bare:
                        bare.settimeout(3)
                        bare.shutdown(socket.SHUT_WR)
                        while bare.recv(4096):  # what is unread would reset it, and the alert be lost
                            pass

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(thread.join, 30)  # the loop has connections to close, for which it waits
