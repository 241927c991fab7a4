"""Real servers for the tests, started once and only when a test asks for them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings

from bridge.net.loop import Loop
from tests.servers.activemq import ActiveMQ
from tests.servers.certificates import Certificates
from tests.servers.mock_kafka import MockKafka
from tests.servers.moto import Moto
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.tansu import Tansu

SEED = os.environ.get("TEST_SEED", "1")
"""Of all that is drawn: the same one draws the same again, for any test and by however many workers.
`make prove` takes another one in each run."""

random.seed(SEED)  # some parameters are drawn as the tests are collected
settings.register_profile(
    "bridge",
    deadline=None,  # a busy machine is no failure
    derandomize="TEST_SEED" not in os.environ,
    print_blob=True,
)
settings.load_profile("bridge")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    random.seed(f"{SEED} {request.node.nodeid}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"what was drawn is drawn again with TEST_SEED={SEED}")


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    """Run tests in the loop that the bridge runs in, but for those of a conftest with a loop of its own."""
    return {"bridge": Loop}


@pytest.fixture(scope="session")
def tansu() -> Iterator[Tansu]:
    """One broker for all tests: use names of your own for topics and groups."""
    with Tansu() as broker:
        yield broker


@pytest.fixture
def own_tansu() -> Iterator[Tansu]:
    """A broker for one test that stops it or counts what is in it."""
    with Tansu() as broker:
        yield broker


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[MockKafka]:
    with MockKafka() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """One server of SQS, S3, SNS and EventBridge for all tests: use names of your own."""
    with Moto() as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What `rabbitmq` and `activemq` show on their ports with TLS, and a client's that they believe."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def rabbitmq(certificates: Certificates) -> Iterator[RabbitMQ]:
    """One RabbitMQ for all tests: use names of your own for queues."""
    tls = (certificates.authority, certificates.server, certificates.server_key)
    with RabbitMQ(tls=tls) as broker:
        yield broker


@pytest.fixture(scope="session")
def activemq(certificates: Certificates) -> Iterator[ActiveMQ]:
    """One ActiveMQ for all tests: use names of your own for destinations."""
    with ActiveMQ(tls=(certificates.server_store, certificates.trust_store)) as broker:
        yield broker


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, for topics, groups, queues and buckets."""
    return f"t-{uuid4().hex[:12]}"
