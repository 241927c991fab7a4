"""Is anybody there? The name, the connection and TLS, told apart, for `check`."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

from yarl import URL

from bridge.core.ports import Findings
from bridge.net.certificates import REMEDY, refusal
from bridge.net.proxies import place_of, proxy_for

_NAME_SECONDS = 4.0
_CONNECT_SECONDS = 8.0
"""TLS included, and more than it ever takes: on a busy machine the client itself may be late."""
_EXPIRES_SOON_DAYS = 14

# X509_V_ERR_… of OpenSSL (openssl/x509_vfy.h), as SSLCertVerificationError.verify_code has them.
_EXPIRED = 10
_NOT_YET_VALID = 9
_UNKNOWN_AUTHORITY = frozenset((2, 18, 19, 20, 21))
_WRONG_NAME = frozenset((62, 64))


async def reach(
    findings: Findings, host: str, port: int, tls: ssl.SSLContext | None, *, address_key: str, ca_key: str
) -> bool:
    """Connect to `host`:`port`, with `tls` where it is given, and hang up; add what hinders to `findings`.

    `address_key` and `ca_key` are the keys of the configuration that a remedy names. Return whether a
    connection came about, within twelve seconds.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        async with asyncio.timeout(_NAME_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        findings.problem(
            f"the name {host} can't be resolved: {reason}",
            f"correct the host name in `{address_key}`, or this machine's DNS",
        )
        return False
    except TimeoutError:
        findings.problem(
            f"the name {host} was not resolved within {_NAME_SECONDS:g} s",
            "look after this machine's DNS: its server does not answer",
        )
        return False
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(
                host, port, ssl=tls, server_hostname=host if tls is not None else None
            )
    except ssl.SSLCertVerificationError as error:
        _not_believed(findings, place, error, address_key, ca_key)
    except ssl.SSLError as error:
        if (said := refusal(error)) is not None:
            findings.problem(f"{place}: {said}", REMEDY)
            return False
        findings.problem(
            f"{place} is there, but no TLS connection came about: {error.reason or error}",
            f"does it speak TLS on this port? If not, `{address_key}` needs another port or no TLS; it may "
            "also ask for a client certificate",
        )
    except ConnectionRefusedError:
        findings.problem(
            f"connection refused: nothing listens at {place}",
            f"is the server running, and is the port in `{address_key}` right?",
        )
    except TimeoutError:
        findings.problem(
            f"no connection to {place} within {_CONNECT_SECONDS:g} s",
            f"a firewall in between, or the wrong address in `{address_key}`?",
        )
    except OSError as error:
        lost = isinstance(error, ConnectionError) and tls is not None
        findings.problem(
            f"no connection to {place}: {error.strerror or error}",
            f"does it speak TLS on this port? If not, `{address_key}` needs another port or no TLS"
            if lost
            else f"is the address in `{address_key}` right, and routed from here?",
        )
    else:
        certificate = writer.get_extra_info("peercert")
        writer.transport.abort()
        if certificate:
            _tell_expiry(findings, place, certificate["notAfter"])
        return True
    return False


def note_proxy(findings: Findings, url: URL | str) -> URL | None:
    """Return the proxy that stands before `url`, and tell of it."""
    proxy = proxy_for(url)
    if proxy is not None:
        findings.note(f"{URL(url).host} is reached through the proxy {place_of(proxy)}")
    return proxy


async def reach_url(
    findings: Findings, url: URL | str, tls: ssl.SSLContext | None, *, address_key: str, ca_key: str
) -> bool:
    """Connect to where `url` leads, or to the proxy before it, which is then told; else as `reach`."""
    url = URL(url)
    proxy = note_proxy(findings, url)
    if proxy is None:
        return await reach(
            findings,
            url.host or "",
            url.port or 0,
            tls if url.scheme == "https" else None,
            address_key=address_key,
            ca_key=ca_key,
        )
    # What is behind it is told by the questions that follow.
    return await reach(
        findings,
        proxy.host or "",
        proxy.port or 0,
        None,
        address_key=f"{url.scheme}_proxy",
        ca_key=ca_key,
    )


def _not_believed(
    findings: Findings, place: str, error: ssl.SSLCertVerificationError, address_key: str, ca_key: str
) -> None:
    reason = error.verify_message
    if error.verify_code in _UNKNOWN_AUTHORITY:
        findings.problem(
            f"the certificate of {place} is signed by an authority unknown here ({reason})",
            f"put the PEM of the authority that signed it into `{ca_key}`",
        )
    elif error.verify_code in _WRONG_NAME:
        findings.problem(
            f"the certificate of {place} is for another name: {reason}",
            f"write the name that the certificate is for into `{address_key}`, or have it reissued",
        )
    elif error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        findings.problem(
            f"the certificate of {place} is not valid now: {reason}",
            "have the server's certificate renewed; and is this machine's clock right?",
        )
    else:
        findings.problem(
            f"the certificate of {place} is not accepted: {reason}",
            f"have the server's certificate mended, or `{ca_key}` with the authorities to trust",
        )


def _tell_expiry(findings: Findings, place: str, not_after: str) -> None:
    days = (ssl.cert_time_to_seconds(not_after) - time.time()) / 86_400
    if days < _EXPIRES_SOON_DAYS:
        findings.warning(
            f"the certificate of {place} expires in {days:.1f} days, on {not_after}",
            "have the server's certificate renewed",
        )
