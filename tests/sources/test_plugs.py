"""A source that another package brings: found by its entry point, and told of where it can't be used."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from textwrap import dedent

import pytest

from bridge.core.ports import Spooled
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sources import GoneError, Whereabouts
from bridge.sources.registry import GROUP, installed, kind_of, read
from bridge.sources.sqs import KIND as SQS
from bridge.sources.sqs.config import SqsConfig
from bridge.testing import until
from bridge.testing.world import plants_of
from tests.support.daemon import Daemon

OURS = ["amqp", "dcache", "kafka", "rucio", "sqs"]
PLUG = """
    from __future__ import annotations

    import asyncio
    from collections.abc import AsyncIterator, Sequence
    from contextlib import asynccontextmanager
    from typing import Literal

    from pydantic import Field

    from bridge.core.delivery import Delivery
    from bridge.core.event import Event
    from bridge.core.ports import Finding, Findings, Patience, Slots
    from bridge.sources import Keeping, SourceConfig, SourceKind
    from bridge.telemetry.metrics import SourceMetrics

    class TicksConfig(SourceConfig):
        type: Literal["ticks"]
        count: int = 3

    class Ticks:
        def __init__(self, config: TicksConfig, key: str, metrics: SourceMetrics, keeping: Keeping) -> None:
            self._config, self._identity = config, config.identity or key

        @asynccontextmanager
        async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
            yield self._batches(slots)

        async def _batches(self, slots: Slots) -> AsyncIterator[Sequence[Delivery]]:
            for number in range(self._config.count):
                await slots.wait()
                data = b'{"n": %d}' % number
                yield [Delivery(Event(id=f"tick-{number}", source=self._identity, type="tick", data=data))]
            await asyncio.Event().wait()

        def problems(self) -> Sequence[str]:
            return []

    async def check(config: TicksConfig, key: str, patience: Patience) -> Sequence[Finding]:
        findings = Findings(f"source {key}")
        findings.ok(f"it will tick {config.count} times")
        return findings.found

    KIND = SourceKind(config=TicksConfig, build=Ticks, check=check)
"""


@pytest.fixture
def plugs(tmp_path: Path) -> Callable[..., Path]:
    """Install a package, as a wheel's files are: a module beside a folder that tells of it."""

    def install(name: str, module: str, *, type: str = "ticks", object: str = "KIND") -> Path:  # noqa: A002 - its words
        site = tmp_path / "site"
        told = site / f"{name}-1.0.dist-info"
        told.mkdir(parents=True)
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text(f"[{GROUP}]\n{type} = {name}:{object}\n")
        (site / f"{name}.py").write_text(dedent(module))
        return site

    return install


def unusable(site: Path, monkeypatch: pytest.MonkeyPatch, type_: str = "ticks") -> str:
    """Tell why what is installed at `site` can't be used."""
    monkeypatch.syspath_prepend(site)
    for module in ("ticking", "theirs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    entries = [entry for each in distributions(path=[str(site)]) for entry in each.entry_points]
    ours = next(iter(distributions(name="oscar-event-bridge")))  # a tree that was built has it twice
    found = read([*entries, *ours.entry_points.select(group=GROUP)])
    assert [name for name in found.kinds if name != type_] == [name for name in OURS if name != type_]
    return found.unusable[type_]


async def test_a_package_brings_a_source_and_nothing_of_the_bridge_is_changed(
    plugs: Callable[..., Path], tmp_path: Path
) -> None:
    site = plugs("ticking", PLUG)
    prelude = f"import sys; sys.path.insert(0, {str(site)!r})"
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        configuration = {
            **plants_of(oscar),
            "sources": {"clock": {"type": "ticks", "count": 2}},
            "routes": [{"from": "clock", "when": "data.n >= 0", "to": "plants"}],
        }
        daemon = Daemon(tmp_path / "bridge", configuration, prelude, fresh=True)
        try:
            daemon.start()
            await daemon.becomes_ready()
            await until(lambda: len(list(oscar.ledger.bodies("plants"))) == 2, what="two jobs")
            assert sorted(json.loads(body)["n"] for body in oscar.ledger.bodies("plants")) == [0, 1]
            assert await daemon.metric("bridge_events_settled_total", source="clock", outcome="accepted") == 2
            assert await daemon.stop() == 0
        finally:
            daemon.close()
        code = f"{prelude}; from bridge.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "check", "-c", str(daemon.file)]
        told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "it will tick 2 times" in told.stdout


def test_one_that_cannot_be_loaded_is_a_mistake_where_it_is_configured_and_nowhere_else(
    plugs: Callable[..., Path], tmp_path: Path
) -> None:
    """And `check` tells of it in any case."""
    site = plugs("ticking", "import a_client_that_is_not_here")
    kafka = {"type": "kafka", "bootstrap_servers": "127.0.0.1:1", "topics": ["t"], "group_id": "g"}
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from bridge.cli import main; sys.exit(main())"

    def check(source: dict[str, object]) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "bridge.yaml"
        auth = {"type": "basic", "username": "oscar", "password": "sandbox"}
        document = {
            "state_dir": str(tmp_path / "state"),
            "http": {"port": 0},
            "clusters": {"main": {"endpoint": "http://127.0.0.1:1", "auth": auth}},
            "services": {"plants": {}},
            "sources": {"uploads": source},
            "routes": [{"from": "uploads", "to": "plants"}],
        }
        file.write_text(json.dumps(document, indent=1))
        command = [sys.executable, "-c", code, "check", "-c", str(file)]
        return subprocess.run(command, capture_output=True, text=True)

    told = check({"type": "ticks"})
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert line.endswith(
        "sources.uploads.type: the plug of type `ticks`, ticking:KIND of ticking 1.0, can't be loaded: "
        "ModuleNotFoundError: No module named 'a_client_that_is_not_here'"
    )
    assert "bridge.yaml:21:12:" in line

    told = check(kafka)
    assert told.returncode == 1, told.stderr  # nobody answers at port 1
    assert "warning  sources" in told.stdout
    assert "a_client_that_is_not_here" in told.stdout


def test_two_plugs_of_one_type_are_told_apart_by_name(
    plugs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugs("ticking", PLUG)
    assert unusable(plugs("tocking", PLUG), monkeypatch) == (
        "there is more than one plug of type `ticks`, ticking:KIND of ticking 1.0 and tocking:KIND of "
        "tocking 1.0: uninstall all but one"
    )


def test_a_plug_does_not_take_the_place_of_one_of_ours(
    plugs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = unusable(plugs("theirs", PLUG, type="kafka"), monkeypatch, "kafka")
    assert "bridge.sources.kafka:KIND of oscar-event-bridge" in told
    assert "theirs:KIND of theirs 1.0" in told


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("KIND = 7", "gives a int, where a SourceKind is expected"),
        ("", "can't be loaded: AttributeError: module 'ticking' has no attribute 'KIND'"),
        ("raise RuntimeError('no licence')", "can't be loaded: RuntimeError: no licence"),
        (PLUG.replace('Literal["ticks"]', 'Literal["tick"]'), "without `type: Literal['ticks']`"),
        (PLUG.replace('type: Literal["ticks"]', "pass"), "without `type: Literal['ticks']`"),
        (
            PLUG.replace("config=TicksConfig", "config=dict"),
            "a configuration that is no subclass of SourceConfig",
        ),
        (PLUG.replace("count: int", "count: Missing"), "a configuration that can't be used"),
        (PLUG.replace('"ticks"]', '"ticks"] = Field(alias="kind")'), "Aliases for discriminator"),
    ],
)
def test_what_is_no_plug_is_told_in_plain_words(
    plugs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    told = unusable(plugs("ticking", module), monkeypatch)
    assert told.startswith("the plug of type `ticks`, ticking:KIND of ticking 1.0, ")
    assert words in told


def test_ours_are_registered_as_anybodys() -> None:
    assert list(installed().kinds) == OURS
    assert not installed().unusable
    config = SqsConfig(type="sqs", queue="uploads")
    assert kind_of(config) is SQS


def test_no_client_library_is_loaded_by_who_only_reads_the_configuration() -> None:
    clients = ["aiokafka", "aiobotocore", "botocore", "aiormq"]
    code = f"import sys, bridge.settings; sys.exit(str([one for one in {clients} if one in sys.modules]))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stderr.strip() == "[]"


async def test_what_a_plug_does_not_say_is_answered_as_for_a_queue() -> None:
    config = SqsConfig(type="sqs", queue="uploads")
    found = await SQS.look_for(config, "a.nc", "a.nc".__eq__, set)
    assert (found.whereabouts, found.detail) == (
        Whereabouts.UNKNOWN,
        "a queue can't be searched: whether a message waits in it is not known",
    )
    with pytest.raises(GoneError, match="its message has left the queue"):
        await SQS.read_again(config, "m-1", None)
    assert SQS.subject_of(config, Spooled(key="m-1", data=b"")) is None
