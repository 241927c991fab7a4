from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sources.sqs.config import SqsConfig

STATIC = {"access_key_id": "AKIA", "secret_access_key": "hunter2"}


def config(**values: Any) -> SqsConfig:
    return SqsConfig.model_validate({"type": "sqs", "queue": "uploads", **values})


def test_a_name_is_enough() -> None:
    made = config()
    assert (made.pollers, made.wait_seconds) == (2, 20)
    assert (made.endpoint, made.known_region) == (None, None)


@pytest.mark.parametrize(
    ("queue", "endpoint", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "https://sqs.eu-west-1.amazonaws.com", "eu-west-1"),
        (
            "https://vpce-1.sqs.us-east-1.vpce.amazonaws.com/1/q",
            "https://vpce-1.sqs.us-east-1.vpce.amazonaws.com",
            "us-east-1",
        ),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/1/q",
            "https://sqs.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
        ),
        ("http://elasticmq:9324/000000000000/q.fifo", "http://elasticmq:9324", None),
    ],
)
def test_a_url_tells_the_server_and_where_it_is_aws_the_region(
    queue: str, endpoint: str, region: str | None
) -> None:
    made = config(queue=queue)
    assert (made.endpoint, made.known_region) == (endpoint, region)
    other = config(queue=queue, endpoint_url="http://127.0.0.1:1", region="eu-central-1")
    assert (other.endpoint, other.known_region) == ("http://127.0.0.1:1", "eu-central-1")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"queue": "up loads"}, "expected the name of a queue"),
        ({"queue": "a" * 81}, "expected the name of a queue"),
        ({"queue": "arn:aws:sqs:eu-west-1:1:q"}, "expected the name of a queue"),
        ({"queue": "ftp://host/q"}, "expected a URL"),
        ({"queue": "http://host:x/q"}, "expected a URL"),
        ({"endpoint_url": "elasticmq:9324"}, "expected a URL"),
        ({"endpoint_url": "http://u:hunter2@elasticmq:9324"}, "without credentials"),
        ({"region": "EU West"}, "match pattern"),
        ({"pollers": 0}, "greater than or equal to 1"),
        ({"wait_seconds": 0.5}, "greater than or equal to 1"),
        ({"wait_seconds": "30s"}, "less than or equal to 20"),
        ({"access_key_id": "AKIA"}, "expected access_key_id and secret_access_key"),
        ({"secret_access_key": "hunter2"}, "expected access_key_id and secret_access_key"),
        ({"session_token": "hunter2"}, "session_token is given"),
        ({**STATIC, "secret_access_key_file": "FILE"}, "one of secret_access_key and"),
        ({**STATIC, "session_token": "x", "session_token_file": "FILE"}, "one of session_token and"),
        ({**STATIC, "profile": "lab"}, "one of profile and access_key_id"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    values: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    values = {key: str(secret) if value == "FILE" else value for key, value in values.items()}
    with pytest.raises(ValidationError, match=expected) as raised:
        config(**values)
    assert "hunter2" not in str(raised.value)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    assert "hunter2" not in repr(config(**STATIC, session_token="hunter2"))


def test_the_client_library_is_loaded_only_by_who_builds_an_sqs_source() -> None:
    code = "import sys, bridge.sources.sqs.config; sys.exit('botocore' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
