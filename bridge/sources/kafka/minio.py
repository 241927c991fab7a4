"""`oscar-bridge setup-s3 --minio`: the commands by which a bucket of MinIO's tells a topic of its objects.

MinIO has no SQS, but notifies by Kafka ("Publish Events to Kafka" and `mc event add` in its documentation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import quote

from bridge.core.errors import BridgeError
from bridge.sources.kafka.config import KafkaConfig

_EVENTS = {"s3:ObjectCreated:*": "put", "s3:ObjectRemoved:*": "delete", "s3:ObjectAccessed:*": "get"}
"""What `mc event` calls them."""
_MECHANISMS = {"PLAIN": "plain", "SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


def commands(
    config: KafkaConfig,
    key: str,
    *,
    alias: str,
    bucket: str,
    prefix: str,
    suffix: str,
    events: Sequence[str],
    remove: bool,
) -> Iterator[str]:
    """Give the commands for `sources.{key}`, each a line; the password is left to the one who runs them.

    `alias` is what `mc` calls the server. Raises BridgeError for what MinIO has not.
    """
    if len(config.topics) != 1:
        raise BridgeError(f"sources.{key}: MinIO sends to one topic, so `topics` should name one")
    if unknown := [each for each in events if each not in _EVENTS]:
        raise BridgeError(f"`mc event` knows {', '.join(_EVENTS)}, and not {', '.join(unknown)}")
    target = f"oscar_{key}".replace("-", "_")
    rule = f"{quote(f'{alias}/{bucket}')} {quote(f'arn:minio:sqs::{target}:kafka')} --event " + ",".join(
        _EVENTS[each] for each in events
    )
    rule += "".join(
        f" --{name} {quote(value)}" for name, value in (("prefix", prefix), ("suffix", suffix)) if value
    )
    if remove:
        yield f"mc event rm {rule}"
        yield f"mc admin config reset {quote(alias)} notify_kafka:{target}"
        yield f"mc admin service restart {quote(alias)}"
        return
    if config.open != "auto":
        yield f"# with `open: auto` at sources.{key} each record is one event, and one told twice is one job"
    settings = dict(_settings(config, key))
    written = " ".join(quote(f"{name}={value}") for name, value in settings.items())
    secret = ' "sasl_password=$KAFKA_PASSWORD"' if "sasl" in settings else ""
    # Undelivered events wait there while Kafka is away: without it they are lost.
    waits = "queue_dir=/var/lib/minio/events queue_limit=100000"
    yield f"mc admin config set {quote(alias)} notify_kafka:{target} {written}{secret} {waits}"
    yield f"mc admin service restart {quote(alias)}"
    yield f"mc event add {rule} --ignore-existing"
    yield f"mc event ls {quote(f'{alias}/{bucket}')}"


def _settings(config: KafkaConfig, key: str) -> Iterator[tuple[str, str]]:
    yield "brokers", ",".join(config.bootstrap_servers)
    yield "topic", config.topics[0]
    if config.security_protocol.endswith("SSL"):
        yield "tls", "on"
    if config.sasl_mechanism is not None:
        if config.sasl_mechanism not in _MECHANISMS:
            raise BridgeError(
                f"sources.{key}: MinIO knows {', '.join(_MECHANISMS)}, not {config.sasl_mechanism}"
            )
        yield "sasl", "on"
        yield "sasl_mechanism", _MECHANISMS[config.sasl_mechanism]
        yield "sasl_username", config.username or ""
