"""What `check` finds out about a Kafka cluster, its topics and the group, without joining it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, for_code

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.core.errors import CredentialError
from bridge.core.ports import Finding, Findings, Patience
from bridge.net.certificates import REFUSED, REMEDY
from bridge.net.reach import note_proxy
from bridge.sources.kafka.check_group import ASK_SECONDS, TROUBLE, GroupLook, some, text_of
from bridge.sources.kafka.config import KafkaConfig, whole
from bridge.sources.kafka.connection import client_options, complaints
from bridge.sources.kafka.reaching import reach_bootstrap_servers, reach_brokers

_ALL_SECONDS = 11.0
_CONNECT_SECONDS = 4.0
_MARGIN_SECONDS = 0.5
"""In which the client itself says that it could not connect."""
_CLOSE_SECONDS = 2.0
_SHORT_RETENTION = 3600.0


async def check(config: KafkaConfig, key: str, patience: Patience) -> Sequence[Finding]:
    """Look at the cluster, the topics and the group of `sources.{key}`."""
    findings = Findings(f"source {key}")
    try:
        options = client_options(config)
    except CredentialError as error:
        findings.problem(str(error), f"look at the files that `sources.{key}` names")
        return findings.found
    if config.security_protocol == "SASL_PLAINTEXT" and config.sasl_mechanism == "PLAIN":
        findings.warning(
            "the password goes over the network in clear text",
            f"`sources.{key}.security_protocol: SASL_SSL`, or a SCRAM mechanism",
        )
    for name, tls in (("tls", config.tls), ("oauth.tls", None if config.oauth is None else config.oauth.tls)):
        if tls is not None and not tls.verify:
            findings.warning(
                f"`{name}.verify: false`: whoever answers is believed, and gets the credentials",
                f"set `sources.{key}.{name}.ca_file` or `ca_path`, and remove `verify`",
            )
    if config.oauth is not None and config.oauth.token_endpoint is not None:
        note_proxy(findings, config.oauth.token_endpoint)
    if await reach_bootstrap_servers(findings, key, config, options["ssl_context"]):
        try:
            async with asyncio.timeout(_ALL_SECONDS):
                await _Look(findings, key, config, options, patience).all()
        except TimeoutError:
            findings.problem(
                f"the brokers did not answer all questions within {_ALL_SECONDS:g} s",
                "are all brokers of the cluster up, and reachable by the addresses they advertise?",
            )
    return findings.found


class _Look:
    """One look at a cluster that can be reached."""

    def __init__(
        self,
        findings: Findings,
        key: str,
        config: KafkaConfig,
        options: Mapping[str, Any],
        patience: Patience,
    ) -> None:
        self._findings = findings
        self._key = key
        self._config = config
        self._options = options
        self._patience = patience
        self._unreached: set[int] = set()
        """Brokers that can't be reached: what fails then is no reason to look at permissions."""

    async def all(self) -> None:
        options = {**self._options, "request_timeout_ms": int(ASK_SECONDS * 1000)}
        admin = aiokafka_private.make_admin(_CONNECT_SECONDS, **options)
        consumer = aiokafka_private.make_consumer(_CONNECT_SECONDS, **options, group_id=None)
        try:
            if not await self._connected(admin):
                return
            brokers = aiokafka_private.brokers(admin)
            self._unreached = await reach_brokers(
                self._findings, self._key, self._config, brokers, self._options["ssl_context"]
            )
            if brokers and self._unreached == set(brokers):
                return
            topics = await self._topics(admin)
            places = [
                TopicPartition(topic, number) for topic, numbers in topics.items() for number in numbers
            ]
            group = GroupLook(
                self._findings,
                self._key,
                self._config,
                admin,
                consumer,
                self._remedy,
                self._patience,
            )
            await group.all(places)
            # One after the other, and last: a broker may hang up on a question it does not know.
            await self._retention(admin, list(topics))
            await self._session(admin)
        finally:
            closing = [
                asyncio.ensure_future(step)
                for step in (admin.close(), aiokafka_private.close_consumer(consumer))
            ]
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
            for step in closing:
                step.cancel()
            await asyncio.gather(*closing, return_exceptions=True)

    async def _connected(self, admin: AIOKafkaAdminClient) -> bool:
        with complaints() as told:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS + _MARGIN_SECONDS):
                    await admin.start()
            except TROUBLE as error:
                text = "; ".join(told) or str(error) or type(error).__name__
            else:
                return True
        self._findings.problem(*self._why_not_connected(text))
        return False

    def _why_not_connected(self, text: str) -> tuple[str, str]:
        """Tell the broker's complaint and what to do, by the words of aiokafka's own messages."""
        prefix = f"sources.{self._key}"
        if "UnsupportedSaslMechanism" in text or "does not support" in text:
            return (
                f"the broker does not take sasl_mechanism {self._config.sasl_mechanism}: {text}",
                f"choose one that it has enabled for `{prefix}.sasl_mechanism`",
            )
        if "uthentication" in text or "SaslAuth" in text:
            return (
                f"the broker refused the credentials: {text}",
                f"correct `{prefix}.username` and its password (or the token, or the client certificate)",
            )
        if "no access token" in text or "secret file" in text:
            return (f"no token for the broker: {text}", f"look at `{prefix}.oauth`")
        if REFUSED in text:
            return text, REMEDY
        return (
            f"a connection came about, but no answer as Kafka's: {text}",
            f"is it Kafka's port, and does `{prefix}.security_protocol` fit the broker's listener?",
        )

    async def _topics(self, admin: AIOKafkaAdminClient) -> dict[str, list[int]]:
        """Find the topics to read, with their partitions.

        All are listed, since asking for one by name may create it.
        """
        try:
            async with asyncio.timeout(ASK_SECONDS):
                listed = await admin.describe_topics()
        except TROUBLE as error:
            self._findings.problem(
                f"topics can't be listed: {text_of(error)}",
                self._remedy("grant the principal Describe on them"),
            )
            return {}
        there = {entry["topic"]: entry for entry in listed}
        if self._config.topic_pattern is not None:
            pattern = re.compile(whole(self._config.topic_pattern))
            names = sorted(name for name in there if pattern.match(name))
            if not names:
                self._findings.warning(
                    f"no topic matches `topic_pattern` {self._config.topic_pattern!r} now",
                    "correct the pattern, create a topic, or grant the principal Describe on them",
                )
        else:
            names = list(self._config.topics)
        found = {}
        for name in names:
            entry = there.get(name)
            if entry is None or entry["error_code"]:
                self._missing(name, there, 0 if entry is None else entry["error_code"])
                continue
            partitions = sorted(part["partition"] for part in entry["partitions"])
            leaderless = [part["partition"] for part in entry["partitions"] if part["leader"] < 0]
            if leaderless:
                self._findings.warning(
                    f"topic {name}: no leader for partitions {some(leaderless)}, so they can't be read now",
                    "bring the brokers back that hold them",
                )
            self._findings.ok(f"topic {name}: {len(partitions)} partition{'s' * (len(partitions) != 1)}")
            found[name] = partitions
        return found

    def _missing(self, name: str, there: Mapping[str, Any], code: int) -> None:
        if code:
            self._findings.problem(
                f"topic {name} can't be described: {for_code(code).__name__}",
                f"grant the principal Describe and Read on the topic {name}",
            )
            return
        close = get_close_matches(name, there, n=1)
        self._findings.problem(
            f"topic {name} does not exist, or may not be described"
            + (f"; did you mean `{close[0]}`?" if close else ""),
            f"create the topic, correct `sources.{self._key}.topics`, or grant the principal Describe on it",
        )

    def _remedy(self, remedy: str) -> str:
        return "first see to the brokers that can't be reached" if self._unreached else remedy

    async def _retention(self, admin: AIOKafkaAdminClient, topics: Sequence[str]) -> None:
        configured = await self._configured(admin, ConfigResourceType.TOPIC, topics, ["retention.ms"])
        for name, values in configured.items():
            seconds = values.get("retention.ms", -1) / 1000
            if seconds < 0:
                continue
            if seconds < self._patience.unsettled:
                self._findings.warning(
                    f"topic {name} keeps records for {_span(seconds)}, and the bridge may hold events for "
                    f"{_span(self._patience.unsettled)} before they are settled",
                    "raise the topic's `retention.ms`, or let its services park (`park: true`, `park_after`) "
                    "and lower `give_up_after`",
                )
            elif seconds < _SHORT_RETENTION:
                self._findings.warning(
                    f"topic {name} keeps records for {_span(seconds)}: what is produced while the bridge is "
                    "down for longer is lost",
                    "raise the topic's `retention.ms`",
                )

    async def _session(self, admin: AIOKafkaAdminClient) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                brokers = (await admin.describe_cluster())["brokers"]
        except TROUBLE:
            return
        if not brokers:
            return
        names = ("group.min.session.timeout.ms", "group.max.session.timeout.ms")
        broker = str(brokers[0]["node_id"])
        limits = (await self._configured(admin, ConfigResourceType.BROKER, [broker], names)).get(broker, {})
        wanted = self._config.session_timeout * 1000
        low, high = (limits.get(name, wanted) for name in names)
        for name, limit, is_beyond in ((names[0], low, wanted < low), (names[1], high, wanted > high)):
            if is_beyond:
                self._findings.problem(
                    f"`session_timeout` of {_span(wanted / 1000)} is beyond the broker's "
                    f"{name} = {limit:g}: it will refuse the member (INVALID_SESSION_TIMEOUT)",
                    f"set `sources.{self._key}.session_timeout` to {_span(limit / 1000)} or the like",
                )

    async def _configured(
        self,
        admin: AIOKafkaAdminClient,
        kind: ConfigResourceType,
        resources: Sequence[str],
        names: Sequence[str],
    ) -> dict[str, dict[str, int]]:
        """Give the values of `names` by resource, where the principal may see them and the broker tells."""
        asked = [ConfigResource(kind, resource, dict.fromkeys(names, "")) for resource in resources]
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answers = await admin.describe_configs(asked) if asked else []
        except (IncompatibleBrokerVersion, *TROUBLE):
            return {}
        return {
            name: {entry[0]: int(entry[1]) for entry in entries if re.fullmatch(r"-?\d+", entry[1] or "")}
            for answer in answers
            for _, _, _, name, entries in answer.resources
        }


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:g} {unit}" if seconds % size == 0 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:g} s"
