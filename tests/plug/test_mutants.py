"""The promises are worth something: a source that breaks one fails the test that is named after it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCE = (Path(__file__).parents[2] / "examples/plug/oscar_bridge_folder/source.py").read_text()
MUTANTS = {
    "test_the_same_event_has_the_same_id_when_it_comes_again": {
        "@{version[0]}": "@{id(self)}",
    },
    "test_no_more_is_in_hand_than_there_are_slots": {
        "heapq.nsmallest, self._slots.free": "heapq.nsmallest, 1000",
        "found[: self._slots.free]": "found",
    },
    "test_what_is_not_settled_at_the_end_is_given_back": {
        "            delivery.settle(Outcome.RELEASED)": "            pass",
    },
    "test_what_is_settled_never_comes_again": {
        "                await self._move()": "                pass",
    },
    "test_an_idle_source_does_nothing": {
        "await self._look.wait()": "await asyncio.sleep(0)",
        "await asyncio.sleep(0.02)": "await asyncio.sleep(0)",
    },
}
TESTS = """
import pytest
from dataclasses import replace
from importlib import import_module
from bridge.testing import SourcePromises
from test_promises import FolderBed

def of(name):
    folder = import_module(name).Folder
    class MutantBed(FolderBed):
        kind = replace(FolderBed.kind, build=lambda config, key, metrics, _: folder(config, key, metrics))
        async def leaves(self, count, *, seconds=1):
            await super().leaves(count, seconds=seconds)
    return MutantBed

@pytest.fixture
def bed(request, tmp_path):
    return of(request.cls.mutant)(tmp_path / "inbox")
"""


def test_a_source_that_breaks_a_promise_fails_its_test(tmp_path: Path) -> None:
    plug = Path(__file__).parents[2] / "examples" / "plug"
    (tmp_path / "test_promises.py").write_text((plug / "tests" / "test_promises.py").read_text())
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    program = TESTS
    for number, (promise, changes) in enumerate(MUTANTS.items()):
        source = SOURCE
        for before, after in changes.items():
            assert source.count(before) >= 1, before
            source = source.replace(before, after)
        (tmp_path / f"mutant_{number}.py").write_text(source)
        program += f"\nclass Test{number}(SourcePromises):\n    mutant = 'mutant_{number}'\n"
        others = [name for name in MUTANTS if name != promise]
        program += "".join(f"    {name} = None\n" for name in others)
    (tmp_path / "test_mutants.py").write_text(program)
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "test_mutants.py",
            "-k",
            " or ".join(MUTANTS),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{plug}:{tmp_path}"},
        check=False,
    )
    failed = set(re.findall(r"^FAILED test_mutants.py::Test\d::(\w+)", ran.stdout, re.MULTILINE))
    assert failed == MUTANTS.keys(), ran.stdout + ran.stderr
