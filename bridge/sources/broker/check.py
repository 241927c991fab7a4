"""What `check` finds out about message brokers, without taking a message."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from bridge.core.errors import CredentialError
from bridge.core.ports import Finding, Findings, Patience
from bridge.net.addresses import host_and_port
from bridge.net.certificates import REFUSED, REMEDY
from bridge.net.reach import reach
from bridge.sources.broker.config import BrokerConfig
from bridge.sources.broker.link import NO_STREAM, LinkLost, Place, context_of, resolve

_PLACE_SECONDS = 8.0
_CONSUMER_TIMEOUT = 1800
"""Seconds after which RabbitMQ closes a channel with an unacknowledged delivery, by default (since 3.12 for
quorum queues too; RabbitMQ's documentation, "Consumers", "Delivery Acknowledgement Timeout")."""

Look: TypeAlias = Callable[[Findings, Place], Awaitable[None]]
"""Logs in at one address and tells what is found of what is to be read there. Raises LinkLost."""


async def check(config: BrokerConfig, key: str, patience: Patience, look: Look) -> Sequence[Finding]:
    """Look at the brokers of `sources.{key}`."""
    findings = Findings(f"source {key}")
    _judge(findings, key, config, patience)
    try:
        config.read_password()
        context = None if config.tls is None else context_of(config.tls)
    except (CredentialError, OSError, ValueError) as error:
        findings.problem(f"a credential can't be used: {error}", f"mend the file that `sources.{key}` names")
        return findings.found
    each = await asyncio.gather(*(_look(config, key, broker, context, look) for broker in config.brokers))
    for found in each:
        findings.found += found
    return findings.found


def tell_stream(findings: Findings, key: str, what: str, of: str) -> None:
    """Tell that `what`, the value of the key `of`, is a stream."""
    findings.problem(f"{what} is a stream, {NO_STREAM}", f"correct `sources.{key}.{of}`")


async def _look(
    config: BrokerConfig, key: str, broker: str, context: ssl.SSLContext | None, look: Look
) -> Sequence[Finding]:
    findings = Findings(f"source {key}")
    host, port = host_and_port(broker)
    reached = await reach(
        findings,
        host,
        port,
        context,
        address_key=f"sources.{key}.brokers",
        ca_key=f"sources.{key}.tls.ca_file",
    )
    if not reached:
        return findings.found
    try:
        places = await resolve(broker)
    except LinkLost as failure:
        findings.problem(str(failure), f"correct `sources.{key}.brokers`, or this machine's DNS")
        return findings.found
    await asyncio.gather(*(_look_at(findings, config, key, place, look) for place in places))
    return findings.found


async def _look_at(findings: Findings, config: BrokerConfig, key: str, place: Place, look: Look) -> None:
    try:
        async with asyncio.timeout(_PLACE_SECONDS):
            await look(findings, place)
    except TimeoutError:
        _tell(findings, config, key, place, "no answer in time")
    except LinkLost as lost:
        _tell(findings, config, key, place, str(lost))


def _tell(findings: Findings, config: BrokerConfig, key: str, place: Place, trouble: str) -> None:
    prefix = f"sources.{key}"
    lower = trouble.lower()
    for words, remedy in (
        (("virtual host", "vhost", "not_allowed"), f"correct `{prefix}.virtual_host`, or grant access to it"),
        (
            (
                "access_refused",
                "access refused",
                "password is invalid",
                "authenticat",
                "bad connect",
                "login",
            ),
            f"correct `{prefix}.username` and the password"
            if config.username is not None
            else f"does the broker take the certificate `{prefix}.tls.cert_file` for a user?",
        ),
        (
            ("no answer", "hung up", "unexpectedly closed", "reset", "amqp"),
            (
                f"is it a broker that speaks {config.speaks} there, with TLS or without as "
                f"`{prefix}.tls` says?"
            ),
        ),
        ((REFUSED,), REMEDY),
        (("certificate",), f"put the authority that signed it into `{prefix}.tls.ca_file`"),
    ):
        if any(word in lower for word in words):
            findings.problem(f"{place}: {trouble}", remedy)
            return
    findings.problem(f"{place}: {trouble}", f"look at `{prefix}`, and at what the broker's log says")


def _judge(findings: Findings, key: str, config: BrokerConfig, patience: Patience) -> None:
    if config.tls is None:
        findings.note("without TLS the credentials are readable on the way", "use `tls` but in a test")
    elif not config.tls.verify:
        findings.warning(
            "`tls.verify: false`: whoever answers is believed to be the broker, and gets the credentials",
            f"set `sources.{key}.tls.ca_file`, and remove `verify`",
        )
    if patience.unsettled > _CONSUMER_TIMEOUT:
        findings.warning(
            f"the bridge may hold messages for {patience.unsettled:g} s, and RabbitMQ by its default closes "
            f"a channel whose oldest is unacknowledged for {_CONSUMER_TIMEOUT} s",
            "let the services park (`park: true`), or raise the broker's consumer_timeout",
        )
