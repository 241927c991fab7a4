"""Proving who we are to a Kafka broker, and checking who it is."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from secrets import token_hex
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Literal

import aiohttp
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from bridge.core.errors import CredentialError
from bridge.credentials import client_header, post_form
from bridge.net.documents import json_object
from bridge.net.tls import Context
from bridge.net.unanswered import why_unanswered
from bridge.sources.kafka.config import OAuthConfig, TlsConfig
from bridge.telemetry.logging import excerpt
from bridge.values import read_secret, secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12KeyAndCertificates

_TOKEN_TIMEOUT = aiohttp.ClientTimeout(total=10)
_TOKEN_MARGIN = 30.0
"""Seconds before its end from which on a token is not used for a new connection."""


def ssl_context(tls: TlsConfig | None) -> ssl.SSLContext:
    """Make the context for `tls`. Raises CredentialError."""
    if tls is None:
        return ssl.create_default_context()
    try:
        if tls.truststore_file is None:
            context = tls.context()
        else:
            password = secret(tls.truststore_password, tls.truststore_password_file)
            context = Context(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=_trusted(tls.truststore_file, password))
        shown = [file for file in (tls.cert_file, tls.key_file, tls.pkcs12_file) if file is not None]
        if shown:
            context.show(shown, lambda: _load_certificate(context, tls))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise CredentialError(f"the TLS files can't be used: {error}") from error
    return context


def _load_certificate(context: ssl.SSLContext, tls: TlsConfig) -> None:
    tls.show(context, secret(tls.key_password, tls.key_password_file))
    if tls.pkcs12_file is not None:
        _load_pkcs12(context, tls.pkcs12_file, secret(tls.pkcs12_password, tls.pkcs12_password_file))


# `cryptography` is loaded by who has a PKCS#12 file: it takes 8 MiB and 0.1 s.


def _trusted(path: Path, password: str | None) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    store = _read_pkcs12(path, password)
    certificates = [entry.certificate for entry in store.additional_certs]
    if store.cert is not None:
        certificates.append(store.cert.certificate)
    if not certificates:
        raise CredentialError(f"truststore {path} holds no certificate")
    return "".join(certificate.public_bytes(Encoding.PEM).decode("ascii") for certificate in certificates)


def _load_pkcs12(context: ssl.SSLContext, path: Path, password: str | None) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
    )

    store = _read_pkcs12(path, password)
    if store.key is None or store.cert is None:
        raise CredentialError(f"{path} holds no private key with its certificate")
    # The ssl module reads certificates from files only. The file is the owner's alone, lives for this
    # one call, and its key is encrypted with a password that nobody keeps.
    once = token_hex(32)
    with NamedTemporaryFile(suffix=".pem") as file:
        file.write(
            store.key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(once.encode("ascii"))
            )
        )
        for entry in (store.cert, *store.additional_certs):
            file.write(entry.certificate.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name, password=once)


def _read_pkcs12(path: Path, password: str | None) -> PKCS12KeyAndCertificates:
    from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

    try:
        return load_pkcs12(path.read_bytes(), None if password is None else password.encode("utf-8"))
    except (OSError, ValueError) as error:
        raise CredentialError(f"PKCS#12 file {path} can't be read: {error}") from error


def token_provider(oauth: OAuthConfig) -> AbstractTokenProvider:
    """Make the provider that aiokafka asks for a token at each connecting."""
    if oauth.token_file is not None:
        return _TokenFile(oauth.token_file)
    return _ClientCredentials(oauth, oauth.token_endpoint or "", oauth.client_id or "")


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc] # aiokafka is not typed
    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        try:
            return await asyncio.to_thread(read_secret, self._path)
        except CredentialError as error:
            # Any other error than Kafka's would end aiokafka's background tasks unheard.
            raise KafkaConnectionError(str(error)) from error


class _ClientCredentials(AbstractTokenProvider):  # type: ignore[misc] # aiokafka is not typed
    def __init__(self, oauth: OAuthConfig, endpoint: str, client_id: str) -> None:
        self._oauth = oauth
        self._endpoint = endpoint
        self._client_id = client_id
        self._token = ""
        self._usable_until = 0.0
        self._asking = asyncio.Lock()

    async def token(self) -> str:
        async with self._asking:
            if time.monotonic() >= self._usable_until:
                try:
                    await self._ask()
                except (aiohttp.ClientError, OSError, CredentialError, ValueError, OverflowError) as error:
                    why = excerpt(why_unanswered(error))
                    raise KafkaConnectionError(f"no access token from {self._endpoint}: {why}") from error
            return self._token

    async def _ask(self) -> None:
        oauth = self._oauth
        form = {"grant_type": "client_credentials"}
        if oauth.scope is not None:
            form["scope"] = oauth.scope
        client_secret = secret(oauth.client_secret, oauth.client_secret_file) or ""
        asked = time.monotonic()
        headers = {"Authorization": client_header(self._client_id, client_secret)}
        trust: ssl.SSLContext | Literal[True] = True if oauth.tls is None else oauth.tls.context()
        async with aiohttp.ClientSession(timeout=_TOKEN_TIMEOUT) as session:
            reply = await post_form(session, self._endpoint, form, headers, trust)
        if reply.status != 200:
            raise CredentialError(f"status {reply.status}: {reply.text[:200]}")
        answer = json_object(reply.text)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise CredentialError("the answer holds no access_token")
        lifetime = answer.get("expires_in")
        # RFC 6749, 5.1: expires_in is only recommended; without it the token serves this one time.
        seconds = float(lifetime) if isinstance(lifetime, (int, float, str)) else 0.0
        self._token = token
        self._usable_until = asked + max(0.0, seconds - _TOKEN_MARGIN)
