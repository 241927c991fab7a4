"""`sandbox run` joins nothing but what it has started itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.cli import main
from bridge.cli.sandbox import refuse_real_systems
from bridge.core.errors import ConfigurationError
from bridge.sandbox import demo

SANDBOX = Path(__file__).parents[2] / "config" / "sandbox.yaml"


@pytest.fixture(autouse=True)
def _never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", lambda *_, **__: pytest.fail("it was started"))


def test_its_own_configuration_is_taken() -> None:
    refuse_real_systems(SANDBOX)


def test_a_configuration_of_real_systems_is_refused_with_2(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sandbox", "run", "-c", str(file)]) == 2
    said = capsys.readouterr().err
    for key in ("state_dir", "clusters.main.endpoint", "sources.uploads.bootstrap_servers"):
        assert f"{file}: {key}: not the sandbox's: expected ${{SANDBOX_" in said
    assert "`oscar-bridge run` is the command" in said


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("BRIDGE__CLUSTERS__SANDBOX__ENDPOINT", "https://oscar.example.org", "clusters.sandbox.endpoint"),
        ("BRIDGE__SOURCES__UPLOADS__BOOTSTRAP_SERVERS", "kafka:9092", "sources.uploads.bootstrap_servers"),
        ("BRIDGE__SOURCES__BUCKET__ENDPOINT_URL", "https://sqs.example.org", "sources.bucket.endpoint_url"),
        ("BRIDGE__SOURCES__FILES__ENDPOINT", "https://dcache.example.org", "sources.files.endpoint"),
        ("BRIDGE__STATE_DIR", "/var/lib/oscar-bridge", "state_dir"),
    ],
)
def test_what_the_environment_puts_over_it_counts_too(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        refuse_real_systems(SANDBOX)
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


def test_a_source_that_the_sandbox_has_no_server_for_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    text = SANDBOX.read_text(encoding="utf-8")
    rucio = (
        "sources:\n  closed: {type: rucio, protocol: amqp, brokers: [mq.example.org:5672], queue: q, "
        "username: u, password: p}\n"
    )
    file.write_text(
        text.replace("sources:\n", rucio).replace("routes:\n", "routes:\n  - {from: closed, to: plants}\n"),
        encoding="utf-8",
    )
    with pytest.raises(ConfigurationError, match=r"sources\.closed\.type: the sandbox has no `rucio`"):
        refuse_real_systems(file)
