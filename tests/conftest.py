"""Real servers for the tests, started once and only when a test asks for them.

What is quick to start is each worker's own; brokers that take seconds of a processor are the run's.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import structlog
from hypothesis import settings

from bridge.net.loop import Loop
from tests.servers.activemq import ActiveMQ
from tests.servers.certificates import Certificates
from tests.servers.mock_kafka import MockKafka
from tests.servers.moto import Moto
from tests.servers.process import Server
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.shared import Shared
from tests.servers.tansu import Tansu

SEED = os.environ.get("TEST_SEED", "1")
"""Of all that is drawn: the same one draws the same again, for any test and by however many workers.
`make prove` takes another one in each run."""

_S = TypeVar("_S", bound=Server)
_SHARED = pytest.StashKey[Shared]()

random.seed(SEED)  # some parameters are drawn as the tests are collected
settings.register_profile(
    "bridge",
    deadline=None,  # a busy machine is no failure
    derandomize="TEST_SEED" not in os.environ,
    print_blob=True,
)
settings.load_profile("bridge")


@pytest.fixture(autouse=True)
def _logs_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a command that ran in the test's own process has made of logging: others look for lines."""
    configure = structlog.configure

    def without_a_cache(**more: Any) -> None:  # a logger that keeps its settings has them for all tests
        configure(**{**more, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", without_a_cache)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    random.seed(f"{SEED} {request.node.nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    of_the_run = getattr(config, "workerinput", {}).get("shared")
    config.stash[_SHARED] = Shared(Path(of_the_run or mkdtemp(prefix="shared-")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what it shares with the others."""
    node.workerinput["shared"] = str(node.config.stash[_SHARED].folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[_SHARED].end()


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
def shared(request: pytest.FixtureRequest) -> Shared:
    return request.config.stash[_SHARED]


@pytest.fixture(scope="session")
def certificates(shared: Shared) -> Certificates:
    """What `rabbitmq` and `activemq` show on their ports with TLS, and a client's that they believe."""
    return shared.once("certificates", lambda: Certificates(shared.folder))


def _rabbitmq(certificates: Certificates) -> RabbitMQ:
    return RabbitMQ(tls=(certificates.authority, certificates.server, certificates.server_key))


def _activemq(certificates: Certificates) -> ActiveMQ:
    return ActiveMQ(tls=(certificates.server_store, certificates.trust_store))


def _started(make: Callable[[], _S]) -> _S:
    """Start a server; once more on other ports where one was taken between its choice and its use."""
    for _ in range(2):
        with suppress(RuntimeError):
            return make().__enter__()
    return make().__enter__()


@pytest.fixture(scope="session")
def rabbitmq(shared: Shared, certificates: Certificates) -> RabbitMQ:
    """One RabbitMQ for all tests of all workers: use names of your own for queues."""
    return shared.once("rabbitmq", lambda: _started(lambda: _rabbitmq(certificates)))


@pytest.fixture(scope="session")
def activemq(shared: Shared, certificates: Certificates) -> ActiveMQ:
    """One ActiveMQ for all tests of all workers: use names of your own for destinations."""
    return shared.once("activemq", lambda: _started(lambda: _activemq(certificates)))


@pytest.fixture
def own_rabbitmq(certificates: Certificates) -> Iterator[RabbitMQ]:
    """A broker for one test that ends it or its connections."""
    broker = _started(lambda: _rabbitmq(certificates))
    yield broker
    broker.__exit__(None, None, None)


@pytest.fixture
def own_activemq(certificates: Certificates) -> Iterator[ActiveMQ]:
    """A broker for one test that ends it."""
    broker = _started(lambda: _activemq(certificates))
    yield broker
    broker.__exit__(None, None, None)


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, for topics, groups, queues and buckets."""
    return f"t-{uuid4().hex[:12]}"
