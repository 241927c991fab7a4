"""Each of `files/` gives its golden messages and configuration, which can be used, and shows no secret."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.settings.document import read
from bridge.settings.tree import Value, secrets_of
from tests.dcnios.conftest import FILES, bring, untold

NAMES = sorted(path.stem for path in FILES.glob("*.yaml") if not path.stem.endswith(".bridge"))
Made = Callable[[str], tuple[str, Path]]

KEYS = {
    *("nifi", "Source", "Destination", "dCache", "dcache", "Kafka", "GetSQS", "SQS", "GetS3", "S3", "RUCIO"),
    *(
        "OSCAR",
        "oscar",
        "PutS3",
        "generic",
        "connection",
        "name",
        "from",
        "to",
        "endpoint",
        "user",
        "password",
    ),
    *("folder", "statefile", "bootstrap_servers", "topic", "group_id", "security_protocol", "sasl_mechanism"),
    *("sasl_username", "sasl_password", "separate_by_key", "message_demarcator", "ssl_context"),
    *("Truststore_Filename", "Truststore_Password", "Truststore_Type", "SSL_Protocol"),
    *("Keystore_Filename", "Keystore_Password", "Keystore_Type"),
    *("AWS_DEFAULT_REGION", "queue_name", "AWS_S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("host", "port", "virtual_host", "service_filter", "ssl_client_auth", "service", "token"),
    *("MinIO_Endpoint", "file", "variables", "components", "seconds", "node"),
    *("alterations", "action", "maxMessages", "windowSeconds", "Encoding"),
}
"""Every key that DCNiOS has ever read."""
PROCESSORS = {"ExecuteProcess", "GetFile", "ConsumeKafka_2_6", "GetSQS", "ConsumeAMQP", "InvokeOSCAR"}


def golden(path: Path, said: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8")


def tree(name: str) -> Value:
    return read(FILES / f"{name}.yaml", [])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_its_golden_messages_and_configuration(name: str, imported: Made) -> None:
    said, directory = imported(name)
    golden(FILES / f"{name}.expected", said)
    golden(FILES / f"{name}.bridge.yaml", (directory / "bridge.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_can_be_used_once_the_files_named_are_brought(
    name: str, imported: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    said, directory = imported(name)
    command = ["check", "--offline", "-c", str(directory / "bridge.yaml")]
    asks = re.findall(r": to do: (?:copy|make|put|the bridge asks)", said)
    assert main(command) == (75 if asks else 0), (
        "before: those files are not there yet, and nothing else is wrong"
    )
    bring(directory)
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("0 problems and 0 warnings\n")


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_shown_and_each_that_is_used_has_a_file_of_its_own(name: str, imported: Made) -> None:
    secrets = {secret.strip() for secret in secrets_of(tree(name))}
    assert secrets
    said, directory = imported(name)
    configuration = (directory / "bridge.yaml").read_text(encoding="utf-8")
    for secret in secrets | {"swordfish"}:
        assert secret not in said
        assert secret not in configuration
    files = list((directory / "secrets").iterdir())
    assert (directory / "secrets").stat().st_mode & 0o777 == 0o700
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        text = file.read_text(encoding="utf-8").removesuffix("\n")
        assert text in secrets or text == "swordfish-option", "which stands in `folder`"
    named = re.findall(r"secrets/([\w-]+)", configuration)
    assert {file.name for file in files} == set(named) - {"by-agent-token"}, "which a person brings"


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_file_is_told_at_its_place(name: str, imported: Made) -> None:
    said, _ = imported(name)
    assert untold(tree(name), said) == []


def test_the_files_have_every_key_of_every_layout() -> None:
    keys: set[object] = set()
    processors: set[object] = set()
    for name in NAMES:
        for loc, value in tree(name).walk():
            keys |= set(loc)
            if "components" in loc and loc[-1] == "name":
                processors.add(value.content)
    assert keys >= KEYS
    assert processors >= PROCESSORS
    assert len(NAMES) >= 10
