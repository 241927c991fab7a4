"""What `check` finds out about a Kafka cluster, its topics and the group, without joining it."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAuthorizationFailedError,
    for_code,
)

from bridge.core.errors import CredentialError
from bridge.core.ports import Finding, Findings, Patience
from bridge.net.reach import reach
from bridge.sources.kafka.aiokafka_private import close_consumer
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.connection import client_options, complaints

_ALL_SECONDS = 9.0
_CONNECT_SECONDS = 4.0
_ASK_SECONDS = 4.0
_CLOSE_SECONDS = 2.0
_ASSIGNOR = "roundrobin"
"""What the source offers a group to share partitions by: aiokafka's default, and its only one."""
_SHORT_RETENTION = 3600.0
_MOST_NAMES = 5

_TROUBLE = (KafkaError, OSError, TimeoutError, ValueError, TypeError)
"""What aiokafka raises, or stumbles over, when a broker answers oddly."""


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
    if await _reach_any(findings, key, config, options["ssl_context"]):
        try:
            async with asyncio.timeout(_ALL_SECONDS):
                await _Look(findings, key, config, options, patience).all()
        except TimeoutError:
            findings.problem(
                f"the brokers did not answer all questions within {_ALL_SECONDS:g} s",
                "are all brokers of the cluster up, and reachable by the addresses they advertise?",
            )
    return findings.found


async def _reach_any(findings: Findings, key: str, config: KafkaConfig, tls: ssl.SSLContext | None) -> bool:
    """Try every address; those out of reach are only warnings while another one answers."""

    async def one(address: str) -> tuple[str, bool, list[Finding]]:
        host, _, port = address.rpartition(":")
        own = Findings(findings.about)
        reached = await reach(
            own,
            host.strip("[]"),
            int(port),
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

    async def all(self) -> None:
        admin = AIOKafkaAdminClient(**self._options, request_timeout_ms=int(_ASK_SECONDS * 1000))
        consumer = AIOKafkaConsumer(**self._options, request_timeout_ms=int(_ASK_SECONDS * 1000))
        try:
            if not await self._connected(admin):
                return
            topics = await self._topics(admin)
            places = [
                TopicPartition(topic, number) for topic, numbers in topics.items() for number in numbers
            ]
            await asyncio.gather(self._group(admin), self._offsets(admin, consumer, places))
            # One after the other, and last: a broker may hang up on a question it does not know.
            await self._retention(admin, list(topics))
            await self._session(admin)
        finally:
            closing = [asyncio.ensure_future(step) for step in (admin.close(), close_consumer(consumer))]
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
            for step in closing:
                step.cancel()
            await asyncio.gather(*closing, return_exceptions=True)

    async def _connected(self, admin: AIOKafkaAdminClient) -> bool:
        with complaints() as told:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await admin.start()
            except _TROUBLE as error:
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
        return (
            f"a connection came about, but no answer as Kafka's: {text}",
            f"is it Kafka's port, and does `{prefix}.security_protocol` fit the broker's listener?",
        )

    async def _topics(self, admin: AIOKafkaAdminClient) -> dict[str, list[int]]:
        """Find the topics to read, with their partitions.

        All are listed, since asking for one by name may create it.
        """
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                listed = await admin.describe_topics()
        except _TROUBLE as error:
            self._findings.problem(
                f"topics can't be listed: {_text(error)}", "grant the principal Describe on the topics"
            )
            return {}
        there = {entry["topic"]: entry for entry in listed}
        if self._config.topic_pattern is not None:
            pattern = re.compile(self._config.topic_pattern)
            names = sorted(name for name in there if pattern.fullmatch(name))
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
                    f"topic {name}: no leader for partitions {_some(leaderless)}, so they can't be read now",
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

    async def _group(self, admin: AIOKafkaAdminClient) -> None:
        group = self._config.group_id
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                (answer,) = await admin.describe_consumer_groups([group])
            code, _, state, kind, protocol, members, *_ = answer.groups[0]
            if code:
                raise for_code(code)
        except GroupAuthorizationFailedError:
            self._may_not_use_group()
            return
        except _TROUBLE as error:
            self._findings.note(f"group {group} could not be described: {_text(error)}")
            return
        if kind not in ("", "consumer"):
            self._findings.problem(
                f"group {group} is no consumer group but one of type `{kind}`, such as Kafka Connect's",
                f"choose another `sources.{self._key}.group_id`",
            )
        elif members and protocol not in ("", _ASSIGNOR):
            self._findings.problem(
                f"group {group} has {len(members)} members that share partitions by `{protocol}`, and the "
                f"bridge knows `{_ASSIGNOR}` only: it could not join (INCONSISTENT_GROUP_PROTOCOL)",
                f"choose a `sources.{self._key}.group_id` that no other application uses",
            )
        elif members:
            names = sorted({f"{client or identity}{host}" for identity, client, host, *_ in members})
            self._findings.note(
                f"another member is connected to group {group} ({state}): {_some(names)}. Partitions are "
                "shared with it: right for this bridge's own daemon and its replicas, and for nothing else",
                f"if it is another application, choose another `sources.{self._key}.group_id`",
            )
        else:
            self._findings.ok(f"group {group} may be used; no member is connected now")

    def _may_not_use_group(self) -> None:
        self._findings.problem(
            f"group {self._config.group_id} may not be used: GroupAuthorizationFailed",
            f"grant the principal Read and Describe on the group {self._config.group_id}",
        )

    async def _offsets(
        self, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, places: list[TopicPartition]
    ) -> None:
        """Compare the group's commits with what the broker has."""
        if not places:
            return
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                await consumer.start()
                committed, begins, ends = await asyncio.gather(
                    admin.list_consumer_group_offsets(self._config.group_id, partitions=places),
                    consumer.beginning_offsets(places),
                    consumer.end_offsets(places),
                )
        except GroupAuthorizationFailedError:
            self._may_not_use_group()
            return
        except TopicAuthorizationFailedError as error:
            self._findings.problem(
                f"topics may not be read: {_text(error)}", "grant the principal Read on them"
            )
            return
        except _TROUBLE as error:
            self._findings.warning(
                f"the group's offsets could not be read: {_text(error)}",
                f"grant the principal Read on the topics and on the group {self._config.group_id}",
            )
            return
        offsets = {place: committed[place].offset for place in places if place in committed}
        self._compare({place: at for place, at in offsets.items() if at >= 0}, begins, ends)

    def _compare(
        self,
        committed: Mapping[TopicPartition, int],
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        config, findings = self._config, self._findings
        gone = {place: begins[place] - at for place, at in committed.items() if at < begins[place]}
        beyond = [place for place, at in committed.items() if at > ends[place]]
        fresh = [place for place in begins if place not in committed]
        if gone:
            findings.warning(
                f"{sum(gone.values())} records that the group has not read are gone from {_places(gone)}: "
                "reading will go on from the earliest there is, and the loss be counted",
                "raise the topic's retention (`retention.ms`, `retention.bytes`) above the longest downtime",
            )
        if beyond:
            findings.warning(
                f"the group's commits for {_places(beyond)} are beyond the end: the topic was made anew, or "
                "lost records. Reading will begin with the earliest there is",
                "if that is not meant, set the group's offsets with kafka-consumer-groups --reset-offsets",
            )
        lag = sum(max(0, ends[place] - max(at, begins[place])) for place, at in committed.items())
        if committed:
            findings.ok(f"group {config.group_id}: {lag} records behind the newest")
        if fresh:
            there = sum(ends[place] - begins[place] for place in fresh)
            if config.start_at is not None:
                where = f"reading begins with the first record at or after {config.start_at.isoformat()}"
            elif config.auto_offset_reset == "earliest":
                where = (
                    f"reading begins with the earliest record, so {there} records that are there come first"
                )
            else:
                where = f"reading begins with what comes next, so {there} records that are there are not read"
            findings.note(
                f"group {config.group_id} has no commit for {_places(fresh)}: {where}",
                f"if that is not meant: `sources.{self._key}.auto_offset_reset` or `start_at`",
            )

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
            async with asyncio.timeout(_ASK_SECONDS):
                brokers = (await admin.describe_cluster())["brokers"]
        except _TROUBLE:
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
            async with asyncio.timeout(_ASK_SECONDS):
                answers = await admin.describe_configs(asked) if asked else []
        except (IncompatibleBrokerVersion, *_TROUBLE):
            return {}
        return {
            name: {entry[0]: int(entry[1]) for entry in entries if re.fullmatch(r"-?\d+", entry[1] or "")}
            for answer in answers
            for _, _, _, name, entries in answer.resources
        }


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _some(items: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:_MOST_NAMES])
    return shown if len(items) <= _MOST_NAMES else f"{shown} and {len(items) - _MOST_NAMES} more"


def _places(places: Mapping[TopicPartition, int] | Sequence[TopicPartition]) -> str:
    return _some([f"{place.topic}/{place.partition}" for place in places])


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:g} {unit}" if seconds % size == 0 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:g} s"
