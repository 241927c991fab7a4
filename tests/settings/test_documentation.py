"""`docs/configuration.md` tells every key there is, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from bridge.settings import Settings
from tests.settings.walk import fields

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
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
        assert (Path(__file__).parents[2] / link).is_file()
