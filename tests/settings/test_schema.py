"""The schema that editors are given: true to models and documentation, and never stricter than the bridge."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from bridge.cli import main
from bridge.core.errors import ConfigurationError
from bridge.settings import load
from bridge.settings.document import parse
from tests.settings.conftest import MINIMAL
from tests.settings.schema import schema
from tests.settings.test_documentation import examples
from tests.settings.test_examples import CONFIG, with_its_files

ROOT = CONFIG.parent
FILE = ROOT / "bridge" / "settings" / "schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
EDITOR = Draft7Validator(SCHEMA)
LINE = "# yaml-language-server: $schema="


def refused(document: Any) -> list[str]:
    """What an editor underlines."""
    return [f"{error.json_path}: {error.message}" for error in EDITOR.iter_errors(document)]


def plain(text: str) -> Any:
    return parse(text, "bridge.yaml", []).plain()


def test_the_file_is_what_models_and_documentation_make() -> None:
    made = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(made, encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == made, "UPDATE_GOLDEN=1 pytest tests/settings/test_schema.py"
    Draft7Validator.check_schema(SCHEMA)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def keys(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with what the schema says of it."""
    if isinstance(part, dict):
        for key, value in part.get("properties", {}).items():
            yield f"{path}.{key}", value
            yield from keys(value, f"{path}.{key}")
        for key in ("anyOf", "allOf", "then", "items", "additionalProperties"):
            yield from keys(part.get(key), path)
    elif isinstance(part, list):
        for value in part:
            yield from keys(value, path)


def test_every_key_is_described_with_its_unit_and_default() -> None:
    told: dict[str, list[Any]] = {}
    for key, value in keys(SCHEMA):
        told.setdefault(key, []).append(value)
    bare = {key for key, said in told.items() for value in said if "description" not in value}
    assert {key for key in bare if key.rpartition(".")[2] not in ("type", "tls", "auth", "oauth")} == set()
    (drain,) = told[".drain_seconds"]
    assert drain["default"] == "25s"
    assert "500ms" in drain["description"]


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_as_an_editor_wants_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert refused(plain(text)) == []
    (line,) = re.findall(rf"^{re.escape(LINE)}(.+)$", text, re.MULTILINE)
    assert (path.parent / line).read_bytes() == FILE.read_bytes()


def test_configurations_among_the_other_examples_are_so_too() -> None:
    for path in ROOT.glob("examples/**/*.yaml"):
        document = plain(path.read_text(encoding="utf-8"))
        assert "state_dir" not in document or refused(document) == [], path


@pytest.mark.parametrize("name", ["README.md", *sorted(f"docs/{one.name}" for one in ROOT.glob("docs/*.md"))])
def test_the_examples_in_a_text_are_as_an_editor_wants_them(name: str) -> None:
    """But for what a part of a file leaves out."""
    for text in examples(name):
        found = refused(plain(text))
        assert [one for one in found if not re.fullmatch(r"\$: '\w+' is a required property", one)] == []


MISTAKES = [
    ("drain_seconds: 25 sec", "drain_seconds"),
    ("drain_seconds: 0", "drain_seconds"),
    ("drain_seconds: -5s", "drain_seconds"),
    ("http: {prot: 80}", "prot"),
    ("http: {port: 70000}", "70000"),
    ("http: {port: many}", "many"),
    ("http: 9464", "http"),
    ("log: {level: verbose}", "verbose"),
    ("store: {max_bytes: 2 gigabytes}", "max_bytes"),
    ("sources.uploads.topics: uploads", "uploads"),
    ("sources.uploads.typ: kafka", "typ"),
    ("sources.uploads.type: kafak", "kafak"),
    ("sources.uploads.group_id: 12", "12"),
    ("sources.uploads.security_protocol: TLS", "TLS"),
    ("sources.uploads.queue: plants", "queue"),
    ("services.plants.limits: {rate: 10}", "rate"),
    ("services.plants.limits: {rate: 10 per second}", "rate"),
    ("services.plants.limits: {concurrency: automatic}", "automatic"),
    ("services.plants.mode: sync", "sync"),
    ("services.plants.park: maybe", "maybe"),
    ("services.plants.service: Plant_Classification", "Plant_Classification"),
    ("services.plants.clustr: main", "clustr"),
    ("clusters.main.endpoint: oscar.example.org", "oscar.example.org"),
    ("clusters.main.auth.type: ldap", "ldap"),
    ("clusters.main.auth.password: 123456", "123456"),
    ("clusters.main.tls: {ca_file: ~/ca.pem}", "ca_file"),
    ("routes: []", "routes"),
    ("routes: [{from: uploads}]", "to"),
    ("routes: [{from: uploads, to: plants, when: true}]", "True"),
    ("routes: [{from: uploads, to: plants, decode: zip}]", "zip"),
    ("state_dir: null", "state_dir"),
]


@pytest.mark.parametrize(("mistake", "about"), MISTAKES, ids=[mistake for mistake, _ in MISTAKES])
def test_a_typical_mistake_is_underlined_and_the_bridge_does_not_take_it(
    mistake: str, about: str, tmp_path: Path
) -> None:
    ((where, value),) = plain(mistake).items()
    document = plain(MINIMAL)
    *way, last = where.split(".")
    holder = document
    for key in way:
        holder = holder[key]
    holder[last] = value
    assert about in "\n".join(refused(document))
    assert not taken(document, tmp_path)


def taken(document: Any, directory: Path) -> bool:
    path = directory / "bridge.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        load(path, {"NAME": "1"})
    except ConfigurationError:
        return False
    return True


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a document, inner ones too."""
    if way:
        yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for key, each in inner:
        yield from leaves(each, (*way, key))


ODD = [
    *(None, True, False, 0, 1, -1, 1.0, 0.5, 10**6, [], {}, [None], ["a", "b"], {"a": 1}, {"type": "kafka"}),
    *("", " ", "~", "null", "yes", "Off", "0", "1", "-1", "12", "1.0", "1e3", "auto", "10 s", "5m", "0s"),
    *("2GiB", "3 KB", "1.5h", "10/s", "0/s", "${NAME}", "a${NAME}", "http://h", "HTTPS://h/", "h:1"),
    *("h:1,i:2", "/a", "~/a", "gzip", "earliest", "job", "kafka", "2026-01-31T12:00:00Z", "x" * 64, "A_b"),
    *("plants", "uploads"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Any:
    text = (CONFIG / "full.yaml").read_text(encoding="utf-8")
    return plain(with_its_files(text, tmp_path_factory.mktemp("full")))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_an_editor_underlines_the_bridge_does_not_take(
    full: Any, tmp_path: Path, data: st.DataObject
) -> None:
    """Else a person would mend what is right."""
    document = deepcopy(full)
    *way, last = data.draw(st.sampled_from(list(leaves(full))))
    holder = document
    for key in way:
        holder = holder[key]
    holder[last] = data.draw(st.sampled_from(ODD))
    if found := refused(document):
        assert not taken(document, tmp_path), found
