"""`docs/configuration.md` tells every key there is, with its default; and the examples in texts load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from bridge.settings import Settings, load
from bridge.telemetry.metrics import Metrics
from tests.settings.conftest import MINIMAL
from tests.settings.test_examples import with_its_files
from tests.settings.walk import fields

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[2] for row in re.findall(r"^\| `([^`|]+)` \| ([^|]+) \| ([^|]+) \|", TEXT, re.MULTILINE)}
FIELDS = fields(Settings)
COMPUTED = {
    "services.KEY.cluster",
    "services.KEY.service",
    "sources.KEY.identity",
    "clusters.KEY.auth.oidc-agent.socket",
}


def test_every_key_is_documented_and_no_other() -> None:
    assert {key for key in ROWS if key.split(".")[0].removesuffix("[]") in Settings.model_fields} == set(
        FIELDS
    )


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_the_documented_default_is_the_default(key: str) -> None:
    said, field = ROWS[key], FIELDS[key]
    if key in COMPUTED:
        assert said == "computed"
    elif field.is_required():
        assert said == "required"
    elif field.default is None:
        assert said == "none"
    else:
        given = yaml.safe_load(said.strip("`"))
        declared: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        assert TypeAdapter(declared).validate_python(given) == field.default


def test_every_example_named_exists() -> None:
    for link in re.findall(r"\]\(\.\./(config/[^)]+)\)", TEXT):
        assert (ROOT / link).is_file()


def examples(name: str) -> list[str]:
    """The YAML in a text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def loaded(text: str, directory: Path) -> Settings:
    path = directory / "bridge.yaml"
    path.write_text(with_its_files(text, directory / "root"), encoding="utf-8")
    return load(path, {})


def test_the_readmes_example_loads(tmp_path: Path) -> None:
    (example,) = examples("README.md")
    assert loaded(example, tmp_path).warnings == ()


def test_dcaches_example_loads(tmp_path: Path) -> None:
    (example,) = examples("docs/dcache.md")
    head, _, _ = MINIMAL.partition("services:")
    rest = "services: {plants: {}}\nroutes: [{from: arrivals, to: plants}]\n"
    assert loaded(head + rest + example, tmp_path).warnings == ()


def test_the_example_of_a_queue_of_rabbitmq_loads(tmp_path: Path) -> None:
    (example,) = examples("docs/amqp.md")
    head, _, _ = MINIMAL.partition("services:")
    rest = "services: {plants: {}}\nroutes: [{from: station, to: plants}]\n"
    assert loaded(head + rest + example, tmp_path).warnings == ()


def test_the_routes_for_storage_events_load(tmp_path: Path) -> None:
    (example,) = examples("docs/configuration.md")
    head, _, _ = MINIMAL.partition("services:")
    rest = (
        "services: {plants: {}, tidy-up: {}}\n"
        "sources: {bucket: {type: sqs, queue: q, region: eu-west-1, open: auto}}\n"
    )
    assert loaded(head + rest + example, tmp_path).warnings == ()


def test_the_example_of_what_is_sent_together_loads(tmp_path: Path) -> None:
    (example,) = examples("docs/merging.md")
    head, _, _ = MINIMAL.partition("services:")
    kafka = '{type: kafka, bootstrap_servers: "kafka:9092", topics: [t], group_id: g}'
    rest = (
        "services: {mosaic: {}, statistics: {}, lines: {}, scans: {}}\n"
        f"sources: {{arrivals: {kafka}, readings: {kafka}}}\n"
    )
    settings = loaded(head + rest + example, tmp_path)
    assert settings.warnings == ()
    assert all(route.merges for route in settings.routes)


@pytest.mark.parametrize(
    "name", ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
)
def test_every_file_that_a_text_links_to_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert all(((ROOT / name).parent / link).exists() for link in links), links


def test_the_readme_names_every_metric() -> None:
    readme = re.sub(r"`(_\w+)`", r"`bridge_lane\1`", (ROOT / "README.md").read_text(encoding="utf-8"))
    for collector in Metrics().registry._collector_to_names:
        for family in collector.describe():
            assert re.search(rf"`{family.name}(?:_total)?[`{{]", readme), family.name
