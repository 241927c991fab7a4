"""What `check` finds out about the way to a Kafka cluster: its addresses, and those its brokers advertise."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

from bridge.core.ports import Finding, Findings
from bridge.net.addresses import host_and_port
from bridge.net.reach import reach
from bridge.sources.kafka.config import KafkaConfig


async def reach_bootstrap_servers(
    findings: Findings, key: str, config: KafkaConfig, tls: ssl.SSLContext | None
) -> bool:
    """Try every address; those out of reach are only warnings while another one answers."""

    async def one(address: str) -> tuple[str, bool, list[Finding]]:
        host, port = host_and_port(address)
        own = Findings(findings.about)
        reached = await reach(
            own,
            host,
            port,
            tls,
            address_key=f"sources.{key}.bootstrap_servers",
            ca_key=f"sources.{key}.tls.ca_file",
        )
        return address, reached, own.found

    tried = await asyncio.gather(*(one(address) for address in config.bootstrap_servers))
    any_reached = any(reached for _, reached, _ in tried)
    for _, reached, found in tried:
        if reached or not any_reached:
            findings.found += found
            continue
        for finding in found:
            findings.warning(finding.message, finding.remedy)
    return any_reached


async def reach_brokers(
    findings: Findings,
    key: str,
    config: KafkaConfig,
    brokers: Mapping[int, tuple[str, int]],
    tls: ssl.SSLContext | None,
) -> set[int]:
    """Try the address of every broker; return the ids of those out of reach."""
    known = {address.replace("[", "").replace("]", "") for address in config.bootstrap_servers}

    async def one(node: int, host: str, port: int) -> tuple[int, list[Finding]]:
        if f"{host}:{port}" in known:
            return node, []  # tried already
        own = Findings(findings.about)
        keys = {"address_key": "advertised.listeners", "ca_key": f"sources.{key}.tls.ca_file"}
        reached = await reach(own, host, port, tls, **keys)
        return node, [] if reached else own.found

    unreached = set()
    for node, found in await asyncio.gather(*(one(node, *place) for node, place in brokers.items())):
        for finding in found:
            unreached.add(node)
            host, port = brokers[node]
            findings.problem(
                f"broker {node} advertises {host}:{port}, which can't be reached: {finding.message}",
                "correct `advertised.listeners` of that broker, or have its name resolved and its port open "
                "here: what it leads is not read",
            )
    return unreached
