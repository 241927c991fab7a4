"""A wrong variable of the AWS environment: a source that can't be opened, and the variable is named."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.core.errors import SourceLost
from bridge.core.ports import Patience
from bridge.sources.sqs.check import check
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import connect
from bridge.sources.sqs.environment import suspects

STATIC = {"access_key_id": "AKIA", "secret_access_key": "hunter2"}
SERVER = {"endpoint_url": "http://127.0.0.1:9"}

WRONG: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"AWS_ENDPOINT_URL": "localhost:4566"}, STATIC, "AWS_ENDPOINT_URL"),
    ({"AWS_ENDPOINT_URL_SQS": "localhost:4566"}, STATIC, "AWS_ENDPOINT_URL_SQS"),
    ({"AWS_METADATA_SERVICE_TIMEOUT": "1s"}, SERVER, "AWS_METADATA_SERVICE_TIMEOUT"),
    ({"AWS_METADATA_SERVICE_NUM_ATTEMPTS": "a few"}, SERVER, "AWS_METADATA_SERVICE_NUM_ATTEMPTS"),
    (
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.org/x"},
        SERVER,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "nonsense"}, SERVER, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
        SERVER,
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ),
    ({"AWS_DEFAULTS_MODE": "nonsense"}, STATIC | SERVER, "AWS_DEFAULTS_MODE"),
    ({"AWS_PROFILE": "nonsense"}, STATIC | SERVER, "AWS_PROFILE"),
    ({"AWS_CONFIG_FILE": __file__}, STATIC | SERVER, "AWS_CONFIG_FILE"),
    ({"AWS_DEFAULT_REGION": "eu west"}, STATIC | SERVER | {"region": None}, "AWS_DEFAULT_REGION"),
    (
        {"AWS_CA_BUNDLE": "/no/such"},
        STATIC | {"endpoint_url": "https://127.0.0.1:9"},
        "AWS_CA_BUNDLE",
    ),
]
WRONGLY = pytest.mark.parametrize(("variables", "keys", "named"), WRONG, ids=[names for *_, names in WRONG])


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    # A variable that is right is not suspected, and no secret is told.
    monkeypatch.setenv("AWS_SESSION_TOKEN", "nonsense")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


def config(keys: dict[str, Any]) -> SqsConfig:
    return SqsConfig.model_validate({"type": "sqs", "queue": "uploads", "region": "eu-west-1", **keys})


@WRONGLY
async def test_a_wrong_variable_is_a_source_that_can_not_be_opened_and_is_named(
    variables: dict[str, str], keys: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceLost, match=rf"\(is (\w+ or )*{named}( or \w+)* right\?\)$"):
        async with connect(config(keys)):
            pass


@pytest.mark.parametrize(("variables", "keys", "named"), WRONG[-1:] + WRONG[:1])
async def test_check_names_it_too(
    variables: dict[str, str], keys: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = await check(config(keys), "bucket", Patience(attempt=1, unsettled=1))
    assert [named in finding.message for finding in found if finding.severity == "problem"] == [True]


def test_where_no_value_is_shown_each_variable_is_suspected_and_a_secret_never() -> None:
    set_here = {"AWS_A": "1", "AWS_B": "2", "AWS_SECRET_ACCESS_KEY": "3", "AWS_SESSION_TOKEN": "4", "B": "5"}
    assert suspects(ValueError("odd"), set_here) == " (is AWS_A or AWS_B right?)"
    assert suspects(ValueError("3"), {"AWS_SECRET_ACCESS_KEY": "3", "B": "3"}) == ""
