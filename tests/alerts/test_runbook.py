"""docs/operating.md has an entry for each alert, and its commands are such that there are."""

from __future__ import annotations

import re
import shlex

import pytest

from bridge.cli.entry import _parser
from tests.alerts.rules import ROOT, rules

TEXT = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
HEADINGS = re.findall(
    r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
)
ENTRIES = dict(re.findall(r"^### (OscarBridge\w+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))
_AS_ABOVE = {"OscarBridgeDeadLettersWait": "OscarBridgeDeadLetters"}
"""Entries whose commands are those of another."""


def commands(text: str) -> list[str]:
    """The lines of the blocks to be given to a shell, without what follows `#`."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        line
        for block in blocks
        for whole in block.splitlines()
        if (line := whole.partition(" # ")[0].strip())
    ]


def test_each_alert_has_an_entry_in_the_order_of_the_rules() -> None:
    assert list(ENTRIES) == list(rules())


@pytest.mark.parametrize("alert", rules())
def test_an_entry_says_what_it_means_for_the_users_and_how_to_look_in_two_commands(alert: str) -> None:
    entry = ENTRIES[alert]
    assert re.search(r"\*\*For\s+the\s+users\*\*", entry)
    first = re.search(r"^```sh\n(.*?)^```$", ENTRIES[_AS_ABOVE.get(alert, alert)], re.MULTILINE | re.DOTALL)
    assert first is not None
    assert len(first[1].splitlines()) == 2


def given() -> list[str]:
    """All that is to be given to the bridge, in blocks and in the text."""
    inline = re.findall(r"`bridge ([a-z][^`]*)`", TEXT.replace("\n", " "))
    blocks = [line.removeprefix("bridge ") for line in commands(TEXT) if line.startswith("bridge ")]
    return sorted({*inline, *blocks})


@pytest.mark.parametrize("command", given())
def test_a_command_is_one_that_there_is(command: str) -> None:
    words = [{"CAUSE": "http_500"}.get(word, word) for word in shlex.split(command)]
    if words[1:] and words[:2] in (["parked", "move"], ["parked", "bury"]) and len(words) == 2:
        return  # named, not given
    _parser().parse_args([*words, "-c", "bridge.yaml"])


def test_each_link_within_it_leads_to_a_heading() -> None:
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
