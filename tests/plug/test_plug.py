"""A source of somebody else's: a wheel beside the bridge's, which keeps the promises of a source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUG = Path(__file__).parents[2] / "examples" / "plug"
CONFIGURATION = """
state_dir: {directory}/state
clusters: {{main: {{endpoint: "http://127.0.0.1:9", auth: {{type: basic, username: o, password: o}}}}}}
services: {{plants: {{}}}}
sources: {{arrivals: {{type: folder, path: {directory}/inbox}}}}
routes: [{{from: arrivals, to: plants}}]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plug, to be put on Python's path."""
    directory = tmp_path_factory.mktemp("plug")
    shutil.copytree(PLUG, directory / "source")  # a build leaves its traces in it
    here = directory / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", here, directory / "source"], check=True
    )
    return here


def run(*command: str | Path, plug: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if plug is not None:
        environment["PYTHONPATH"] = str(plug)
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def promises(installed: Path, *which: str) -> str:
    """Run the plug's own tests, where they see nothing of it but what is installed; return what is said."""
    outside = installed.parent / "tests"
    shutil.copytree(PLUG / "tests", outside, dirs_exist_ok=True)
    shutil.copy(PLUG / "pyproject.toml", outside)
    ran = run("-m", "pytest", "-q", "-W", "error", *which, plug=installed, cwd=outside)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_plug_written_from_the_guide_keeps_the_promises_of_a_source(installed: Path) -> None:
    """But for the pause, which takes as long as all the others."""
    told = promises(installed, "--deselect", "test_promises.py::TestBridge", "test_promises.py")
    assert int(re.findall(r"(\d+) passed", told)[0]) >= 11


@pytest.mark.prove
def test_it_keeps_those_that_take_long_too(installed: Path) -> None:
    assert "2 passed" in promises(installed, "test_promises.py::TestBridge")


def test_its_type_is_there_once_it_is_installed_and_not_before(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    file = tmp_path / "bridge.yaml"
    file.write_text(CONFIGURATION.format(directory=tmp_path))
    before = run("-m", "bridge", "check", "-c", file, plug=None, cwd=tmp_path)
    assert before.returncode == 2
    assert "`folder` is no type there is" in before.stderr
    after = run("-m", "bridge", "check", "-c", file, plug=installed, cwd=tmp_path)
    assert "inbox is there, and its files can be moved" in after.stdout
    assert "source arrivals" in after.stdout
