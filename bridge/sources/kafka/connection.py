"""What every client of one Kafka cluster is given, and why one could not connect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka.errors import KafkaError

from bridge.core.errors import reason, root_cause
from bridge.net.certificates import refusal
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.security import ssl_context, token_provider
from bridge.values import secret


def client_options(config: KafkaConfig) -> dict[str, Any]:
    """Give the arguments that aiokafka's clients have in common. Raises CredentialError."""
    return {
        "bootstrap_servers": list(config.bootstrap_servers),
        "client_id": config.client_id,
        "metadata_max_age_ms": int(config.metadata_max_age * 1000),
        "security_protocol": config.security_protocol,
        "ssl_context": ssl_context(config.tls) if config.security_protocol.endswith("SSL") else None,
        "sasl_mechanism": config.sasl_mechanism or "PLAIN",
        "sasl_plain_username": config.username,
        "sasl_plain_password": secret(config.password, config.password_file),
        "sasl_kerberos_service_name": config.kerberos_service_name,
        "sasl_kerberos_domain_name": config.kerberos_domain_name,
        "sasl_oauth_token_provider": None if config.oauth is None else token_provider(config.oauth),
    }


def reason_of(error: BaseException) -> str:
    """Return what `error`, or the first in its group, says; aiokafka's own say of which type they are."""
    error = root_cause(error)
    return str(error) if isinstance(error, KafkaError) else reason(error)


class _Collector(logging.Handler):
    """Collects what one task makes aiokafka complain about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.task = asyncio.current_task()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if asyncio.current_task() is self.task:
            errors = [one for one in (record.args or ()) if isinstance(one, BaseException)]
            said = [told for error in errors if (told := refusal(error)) is not None]
            if any(isinstance(error, TimeoutError) and not str(error) for error in errors):
                said.append("no answer in time")
            self.messages.append(": ".join([record.getMessage().rstrip(": "), *said]))


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Give the log lines of aiokafka: why it could not connect is told nowhere else."""
    logger = logging.getLogger("aiokafka")
    collector = _Collector()
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
