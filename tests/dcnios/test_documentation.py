"""Each example of `docs/from-dcnios.md` is imported, and becomes what the text says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.cli import main
from tests.dcnios.conftest import bring
from tests.dcnios.test_files import KEYS

TEXT = (Path(__file__).parents[2] / "docs" / "from-dcnios.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```ya?ml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
"""What DCNiOS has (`yml`) and what becomes of it (`yaml`), in turn."""
WHOLE = yaml.safe_load(BLOCKS[0])
PAIRS = [
    pytest.param(first, second, id=re.findall(r"type: (?!basic)(\w+)", second)[0])
    for first, second in list(pairwise(BLOCKS))[::2]
]


def whole(text: str) -> str:
    """A file of DCNiOS of a part of one, with the destination of the first example."""
    if text.startswith("nifi:"):
        return text
    source: dict[str, Any] = yaml.safe_load(text)
    ((element,),) = source.values()
    connection = [{"from": element["name"], "to": "edgan3"}]
    return yaml.safe_dump({"nifi": {**WHOLE["nifi"], "Source": source, "connection": connection}})


@pytest.mark.parametrize(("given", "becomes"), PAIRS)
def test_an_example_becomes_what_the_text_says(
    given: str,
    becomes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dcnios.yaml").write_text(whole(given), encoding="utf-8")
    assert main(["import-dcnios", "dcnios.yaml"]) == 0
    said = capsys.readouterr().out
    made = Path("bridge.yaml").read_text(encoding="utf-8")
    for part in re.split(r"\n\n", becomes):
        assert part in made
    if given == BLOCKS[0]:
        (told,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
        assert set(told.splitlines()) <= set(said.splitlines())
        assert made.endswith(becomes), "that is all of it"
    bring(tmp_path)
    assert main(["check", "--offline", "-c", "bridge.yaml"]) == 0


def test_there_is_an_example_of_each_source() -> None:
    assert {pair.id for pair in PAIRS} == {"kafka", "dcache", "sqs", "rucio"}
    assert len(BLOCKS) == 2 * len(PAIRS)


def test_the_text_names_every_key() -> None:
    own = {"name", "from", "to", "port", "host", "file", "variables", "action", "queue_name", "node"}
    never_told = {"Truststore_Type", "SSL_Protocol", "Keystore_Type", "MinIO_Endpoint"}
    missing = {key for key in KEYS - own - never_told if not re.search(rf"\b{key}\b", TEXT)}
    assert not missing
