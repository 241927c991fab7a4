"""`oscar-bridge test` and `check --event`: what is told, and the exit status that a site's CI goes by."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridge.checkup.cases import Case, Expected
from bridge.cli import main
from bridge.core.identity import invocation_name

ROOT = Path(__file__).parents[2]
BRIDGE = """\
state_dir: /var/lib/oscar-bridge
clusters:
  main:
    endpoint: https://oscar.example.org
    auth: {type: basic, username: oscar, password_file: /nowhere/password}
    tls: {ca_file: /nowhere/ca.pem}
services:
  plants: {service: plant-classification}
  flood: {max_event_bytes: 40}
sources:
  uploads: {type: kafka, bootstrap_servers: "kafka:9092", topics: [uploads], group_id: oscar}
  bucket: {type: sqs, queue: uploads, region: eu-west-1}
routes:
  - {from: uploads, when: "data.size > 0", to: plants}
  - {from: uploads, when: data.flood, to: flood}
  - {from: bucket, when: 'subject.endsWith(".nc")', to: plants}
  - {from: bucket, when: 'subject.startsWith("run/")', to: flood, merge: {key: subject}, quiet: 1m}
  - {from: bucket, when: 'subject.startsWith("all/")', to: flood, merge: {max_events: 9, window: 1m}}
"""


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text(BRIDGE, encoding="utf-8")
    return path


def run(bridge: Path, *cases: dict[str, Any]) -> int:
    file = bridge.with_name("events.yaml")
    file.write_text(
        json.dumps({"tests": [{"name": "a case", "source": "uploads", **case} for case in cases]})
    )
    return main(["test", str(file), "-c", str(bridge)])


@pytest.mark.parametrize(
    ("example", "config", "count"),
    [
        ("examples/tests/kafka.yaml", "config/kafka.yaml", 7),
        ("examples/minio/events.yaml", "examples/minio/bridge.yaml", 3),
    ],
)
def test_an_example_passes(example: str, config: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(ROOT / example), "-c", str(ROOT / config)]) == 0
    assert f"{count} tests, 0 failed" in capsys.readouterr().out


def test_the_documentation_has_every_key() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert told == {*Case.model_fields, *Expected.model_fields}


RECORD = {
    "eventSource": "aws:s3",
    "eventName": "ObjectCreated:Put",
    "eventTime": "2026-01-31T12:00:00.000Z",
    "s3": {"bucket": {"name": "b", "arn": "arn:aws:s3:::b"}, "object": {"key": "a.nc", "sequencer": "1"}},
}
JOB = invocation_name("bucket", "7", "plant-classification")
SECOND = json.loads(json.dumps(RECORD).replace("a.nc", "c.nc"))


@pytest.mark.parametrize(
    "case",
    [
        {"data": {"size": 1}, "expect": [{"service": "plants"}]},
        {"data": {"size": 1}, "expect": [{"service": "plants", "route": 1, "payload": {"size": 1}}]},
        {"data": {"size": 0}, "expect": []},
        {"expect": []},
        {"data": "no JSON", "expect": [{"dead_letter": "not_json"}, {"dead_letter": "not_json", "route": 2}]},
        {
            "data": {"flood": True, "filler": "x" * 99},
            "expect": [{"service": "flood", "dead_letter": "too_large"}],
        },
        {
            "data": {"size": 1, "flood": True},
            "expect": [{"service": "plants"}, {"service": "flood", "route": 2}],
        },
        {"data_base64": base64.b64encode(b'{"size": 1}').decode(), "expect": [{"service": "plants"}]},
        {"data_file": "event.json", "expect": [{"service": "plants", "payload": {"size": 7}}]},
        {"source": "bucket", "data": {"Service": "Amazon S3", "Event": "s3:TestEvent"}, "expect": []},
        {
            "source": "bucket",
            "data": {"Records": [RECORD, SECOND]},
            "expect": [
                {"service": "plants", "subject": "a.nc", "type": "aws.s3.ObjectCreated:Put"},
                {"service": "plants", "subject": "c.nc", "payload": {"Records": [SECOND]}},
            ],
        },
        {
            "source": "bucket",
            "subject": "run/1",
            "expect": [{"service": "flood", "window": "run/1", "route": 2}],
        },
        {"source": "bucket", "subject": "all/1", "expect": [{"service": "flood", "window": ""}]},
        {"source": "bucket", "subject": "all/1", "expect": [{"service": "flood"}]},
        {
            "source": "bucket",
            "data": {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t"},
            "expect": [{"dead_letter": "unreadable"}],
        },
        {
            "source": "bucket",
            "data": "text.nc",
            "subject": "text.nc",
            "id": "7",
            "expect": [{"service": "plants", "payload": "text.nc", "job": JOB}],
        },
    ],
)
def test_what_is_as_expected_passes(
    bridge: Path, case: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (bridge.parent / "event.json").write_text('{"size": 7}')
    assert run(bridge, case) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ({"data": {"size": 1}, "expect": []}, ["+ - service: plants"]),
        (
            {"data": {"size": 0}, "expect": [{"service": "plants"}]},
            ["- - service: plants", "no: `when` is false"],
        ),
        (
            {"data": {"size": 1}, "expect": [{"service": "flood"}]},
            ["- - service: flood", "+ - service: plants"],
        ),
        (
            {"data": {"size": 1}, "expect": [{"service": "plants", "route": 2}]},
            ["-   route: 2", "+   route: 1"],
        ),
        (
            {
                "data": {"size": 1, "a": [1, 2]},
                "expect": [{"service": "plants", "payload": {"a": [1, 3], "size": 1}}],
            },
            ["-     - 3", "+     - 2", "      size: 1"],
        ),
        (
            {"data": {"size": 1}, "expect": [{"service": "plants", "payload": {"size": True}}]},
            ["+     size: 1"],
        ),
        (
            {"data": {"flood": True, "filler": "x" * 99}, "expect": [{"service": "flood"}]},
            ["dead_letter: too_large"],
        ),
        (
            {"data": "x", "expect": [{"dead_letter": "route"}]},
            ["- - dead_letter: route", "+ - dead_letter: not_json"],
        ),
        ({"data": {"size": 1}, "expect": [{"dead_letter": "route"}]}, ["+ - service: plants"]),
        (
            {"source": "bucket", "subject": "run/1", "expect": [{"service": "flood", "window": "run/2"}]},
            ["-   window: run/2", "+   window: run/1", "with others in the window of key run/1"],
        ),
    ],
)
def test_what_is_not_as_expected_is_told_with_the_difference(
    bridge: Path, case: dict[str, Any], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bridge, case, {"data": {"size": 1}, "expect": [{"service": "plants"}]}) == 1
    told = capsys.readouterr().out
    for line in lines:
        assert line in told
    assert f"FAILED  a case  ({bridge.with_name('events.yaml')}:1:" in told
    assert "2 tests, 1 failed" in told


def test_mistakes_in_the_file_are_told_with_their_places(
    bridge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bridge.with_name("events.yaml")
    for text, told in (
        (
            "tests: [{name: a, source: upload, expect: []}]",
            "`upload` is not in `sources`; did you mean `uploads`?",
        ),
        ("tests: [{name: a, source: uploads, expect: [{service: plant}]}]", "did you mean `plants`?"),
        ("tests: [{name: a, source: uploads, expect: [{}]}]", "expected `service` or `dead_letter`"),
        (
            "tests: [{name: a, source: uploads, data: 1, data_base64: aGk=, expect: []}]",
            "expected one of data and",
        ),
        ("tests: [{name: a, source: uploads, data_base64: '?', expect: []}]", "expected base64"),
        (
            "tests: [{name: a, source: uploads, data_file: none.json, expect: []}]",
            f"data_file: expected a readable file, but {bridge.with_name('none.json')}: No such file",
        ),
        ("tests: [{name: a, source: uploads, attributes: {a: 1}, expect: []}]", "put it in quotes"),
        ("tests: [{name: a, source: uploads}]", "tests[0].expect: missing"),
        ("", "the file is empty; expected `tests`, a list"),
    ):
        file.write_text(text)
        assert main(["test", str(file), "-c", str(bridge)]) == 2
        captured = capsys.readouterr()
        assert told in captured.err
        assert captured.err.startswith(f"{file}:1:")
        assert captured.out == ""


@pytest.mark.parametrize(
    ("data", "more", "status", "told"),
    [
        ('{"size": 1}', [], 0, ""),
        ('{"size": 1}', ["--expect", "plants"], 0, ""),
        ('{"size": 1}', ["--expect", "flood"], 1, "expected to go to flood, but goes to plants"),
        ('{"size": 1}', ["--expect", "none"], 1, "expected to go to no service, but goes to plants"),
        ('{"size": 1, "flood": true}', ["--expect", "plants"], 1, "but goes to flood, plants"),
        ('{"size": 1, "flood": true}', ["--expect", "flood", "--expect", "plants"], 0, ""),
        ('{"size": 0}', ["--expect", "none"], 0, ""),
        ('{"size": 0}', [], 0, ""),
        ("no JSON", [], 1, ""),
        ("no JSON", ["--json"], 1, ""),
        ("no JSON", ["--expect", "none"], 1, ""),
        ('{"size": 1}', ["--expect", "plant"], 2, "did you mean `plants`?"),
    ],
)
def test_the_exit_status_tells_what_becomes_of_an_event(
    bridge: Path, data: str, more: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bridge.with_name("event.json")
    file.write_text(data)
    assert main(["check", "-c", str(bridge), "--event", str(file), "--source", "uploads", *more]) == status
    assert told in capsys.readouterr().err


def test_a_message_that_can_not_be_read_is_a_dead_letter_too(
    bridge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bridge.with_name("event.json")
    file.write_text('{"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t"}')
    asked = ["check", "-c", str(bridge), "--event", str(file), "--source", "bucket"]
    assert main(asked) == 1
    assert capsys.readouterr().out.startswith("dead letter: an envelope of SNS's")
    assert main([*asked, "--json"]) == 1
    assert "dead_letter" in json.loads(capsys.readouterr().out)


def test_only_what_is_asked_of_events_goes_without_the_files(bridge: Path) -> None:
    assert main(["check", "--offline", "-c", str(bridge)]) == 75
