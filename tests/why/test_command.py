"""`oscar-bridge why` as a person uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from bridge.cli import main
from bridge.core.event import Event
from bridge.store import Store
from bridge.telemetry.metrics import Metrics
from tests.why.place import configuration


@pytest.fixture
def file(tmp_path: Path) -> str:
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml.safe_dump(configuration(tmp_path / "state")))
    return str(file)


def park(tmp_path: Path, *names: str) -> None:
    async def park_them() -> None:
        async with Store.open(tmp_path / "state", Metrics()) as store:
            for name in names:
                await store.park(Event(id=name, source="uploads", type="t", subject=name, data=b""), "plants")

    (tmp_path / "state").mkdir()
    asyncio.run(park_them())


def test_a_file_is_found_and_nothing_in_its_name_moves_the_cursor(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    park(tmp_path, "evil\x1b[2J\u202e.nc")
    assert main(["why", "*.nc", "-c", file]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("event evil\\x1b[2J\\u202e.nc of uploads\n  plants: parked: since 20")
    assert printed.err.startswith("oscar-bridge: what is in hand is not known: no bridge runs in ")
    assert main(["why", "*.nc", "--json", "-c", file]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["events"][0]["id"] == "evil\x1b[2J\u202e.nc"
    assert told["events"][0]["fates"][0]["fate"] == "parked"


def test_of_many_the_newest_are_told(tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    park(tmp_path, *(f"leaf-{number}.nc" for number in range(12)))
    assert main(["where", "leaf-*.nc", "-c", file]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("event")] == [
        f"event leaf-{number}.nc of uploads" for number in range(11, 1, -1)
    ]
    assert last == "these are the newest 10 of more: give more of the name, or an id"


def test_what_is_not_known_is_a_status_of_its_own(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "leaf-1.nc", "-c", file]) == 1
    assert capsys.readouterr().out.startswith("never seen, as far as is known: ")
    with pytest.raises(SystemExit) as ended:
        main(["why", "", "-c", file])
    assert ended.value.code == 2
    assert main(["why", "x", "--source", "upload", "-c", file]) == 2
    assert "did you mean `uploads`" in capsys.readouterr().err
