"""What `check` finds out about one queue of RabbitMQ, over AMQP, without taking a message."""

from __future__ import annotations

from bridge.core.ports import Findings, Patience
from bridge.sources.broker.amqp import look
from bridge.sources.broker.check import tell_stream
from bridge.sources.broker.config import BrokerConfig, DeclareConfig
from bridge.sources.broker.link import NEARLY_DEAD, Place


async def look_at_queue(
    findings: Findings,
    place: Place,
    *,
    config: BrokerConfig,
    queue: str,
    declare: DeclareConfig | None,
    key: str,
    patience: Patience,
) -> None:
    """Look at the queue that is to be read at `place`. Raise LinkLost."""
    found = await look(config, queue, place)
    if found is not None and found.is_stream:
        tell_stream(findings, key, f"{place}: {queue}", "queue")
    elif found is not None:
        limit = "" if found.delivery_limit is None else f", a delivery limit of {found.delivery_limit}"
        findings.ok(
            f"{place}: queue {queue} found, {found.waiting} messages waiting, "
            f"{found.consumers} consumers{limit}"
        )
        if found.consumers > 1:
            patience.tell_of_company(findings, f"{place}: queue {queue} has {found.consumers} consumers")
        _judge_limit(findings, f"{place}: queue {queue}", found.delivery_limit, patience)
    elif declare is not None:
        findings.ok(f"{place}: logged in; queue {queue} is not there, and will be made")
    else:
        findings.problem(
            f"{place}: there is no queue {queue} in virtual host {config.virtual_host}",
            f"make it, correct `sources.{key}.queue` or `virtual_host`, or have it made (`declare`)",
        )


def _judge_limit(findings: Findings, queue: str, limit: int | None, patience: Patience) -> None:
    if limit is None:
        return
    if limit < NEARLY_DEAD:
        findings.warning(
            f"{queue} drops what has come back {limit + 1} times: a bridge that dies as often loses it",
            "give the queue no limit (`x-delivery-limit: -1`, from RabbitMQ 4.0), or the default of 20",
        )
    elif not patience.parks:
        findings.warning(
            f"{queue} drops what has come back more than {limit} times, and a service with `park: false` "
            "holds it at the broker: each end of the bridge is one time more",
            "let the services park (`park: true`), or lift the limit (`x-delivery-limit: -1`, from RabbitMQ "
            "4.0)",
        )
