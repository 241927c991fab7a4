"""An authority for a test, with the certificates of a broker and of a client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PKCS12Certificate,
    serialize_java_truststore,
    serialize_key_and_certificates,
)
from cryptography.x509 import load_pem_x509_certificate

CLIENT = "bridge"
"""The common name in the client's certificate."""
STORE_PASSWORD = "changeit"


class Certificates:
    """Files in `directory`: PEM for most, and PKCS#12 for Java."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("localhost", "127.0.0.1")
        client = authority.issue_cert("bridge.example.org", common_name=CLIENT)
        day = timedelta(days=1)
        expired = authority.issue_cert(
            "bridge.example.org",
            common_name=CLIENT,
            not_before=datetime.now(UTC) - 2 * day,
            not_after=datetime.now(UTC) - day,
        )
        self.authority = directory / "ca.pem"
        self.server, self.server_key = directory / "server.pem", directory / "server.key"
        self.client, self.client_key = directory / "client.pem", directory / "client.key"
        self.expired, self.expired_key = directory / "expired.pem", directory / "expired.key"
        """The client's, of the day before yesterday."""
        self.server_store, self.trust_store = directory / "server.p12", directory / "trust.p12"
        authority.cert_pem.write_to_path(self.authority)
        for cert, chain, key in (
            (server, self.server, self.server_key),
            (client, self.client, self.client_key),
            (expired, self.expired, self.expired_key),
        ):
            chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
            cert.private_key_pem.write_to_path(key)
        encryption = BestAvailableEncryption(STORE_PASSWORD.encode())
        trusted = load_pem_x509_certificate(authority.cert_pem.bytes())
        key = load_pem_private_key(server.private_key_pem.bytes(), None)
        self.server_store.write_bytes(
            serialize_key_and_certificates(
                b"server",
                key,  # type: ignore[arg-type] # trustme makes keys of the kinds that it takes
                load_pem_x509_certificate(server.cert_chain_pems[0].bytes()),
                [trusted],
                encryption,
            )
        )
        self.trust_store.write_bytes(
            serialize_java_truststore([PKCS12Certificate(trusted, b"ca")], encryption)
        )
