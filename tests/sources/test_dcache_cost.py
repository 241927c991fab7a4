"""What docs/dcache.md tells operators: its figures are counted here, its quotations are looked for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sources.dcache import lookups
from bridge.testing import until
from tests.sources.dcache import Bridge, Running

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dcache.md").read_text(encoding="utf-8")
FIGURES = dict(re.findall(r"^\| (.+?) \| ([0-9]+) \|$", PAGE, re.MULTILINE))
"""The rows of the table of costs."""
START = {
    False: FIGURES["start, with a new channel"],
    True: FIGURES["start, with the channel of before (one more where dCache has no metronome)"],
}

pytestmark = pytest.mark.usefixtures("told_no_longer")


class Meter:
    """Counts what the frontend was asked for since the last reading."""

    def __init__(self, site: SandboxDcache) -> None:
        self._site = site
        self._before = 0

    @property
    def shown(self) -> int:
        """The requests since the last reading."""
        return self._site.requests.total() - self._before

    def read(self) -> int:
        """Give the requests since the last reading, and begin anew."""
        shown = self.shown
        self._before += shown
        return shown


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        for name in ("a", "b"):
            await site.mkdir(f"/data/in/{name}")
        yield site


@pytest.fixture
def meter(site: SandboxDcache) -> Meter:
    return Meter(site)


async def relisted(running: Running) -> None:
    """Have all listed, as once a day."""
    running.session.agenda.list_all_soon()
    await running.healed()


async def test_a_start_costs_what_the_page_says(site: SandboxDcache, meter: Meter, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    for again in (False, True):
        async with bridge.running() as running:
            await running.healed()
            each = int(FIGURES["each directory then"])
            assert meter.read() == int(START[again]) + 3 * each
            await running.nothing_more(0.5)
            assert meter.read() == int(FIGURES["nothing happens"])
        assert meter.read() == 0, "nor does a stop cost anything"


async def test_a_file_costs_what_the_page_says(site: SandboxDcache, meter: Meter, tmp_path: Path) -> None:
    async with Bridge(site, tmp_path).running() as running:
        await running.healed()
        meter.read()

        async def costs(row: str, *, events: int = 0) -> None:
            await running.accept(events)
            await until(lambda: meter.shown >= int(FIGURES[row]))
            await running.nothing_more(0.3)
            assert (row, meter.read()) == (row, int(FIGURES[row]))

        await site.upload("/data/in/a/file", b"x")
        await costs("a file closed after writing", events=1)
        await site.close_again("/data/in/a/file")
        await costs("the same version closed again")
        await site.rename("/data/in/a/file", "/data/in/b/file")
        await costs("a file renamed within the watched tree")
        await site.upload("/data/file", b"x")
        await site.rename("/data/file", "/data/in/file")
        await costs("a file moved in", events=1)
        await site.abort_upload(await site.begin_upload("/data/in/failed"))
        await costs("an upload that failed")
        await site.remove("/data/in/file")
        await costs("a file removed")
        await site.mkdir("/data/in/c")
        await costs("a new directory")


async def test_a_file_without_a_size_costs_what_the_page_says(
    site: SandboxDcache, meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNFINISHED_SECONDS", "_RETRY"):  # both, so that the pauses keep their number
        monkeypatch.setattr(lookups, name, getattr(lookups, name) / 5)
    async with Bridge(site, tmp_path).running() as running:
        await running.healed()
        meter.read()
        await site.begin_upload("/data/in/slow")
        await site.close_again("/data/in/slow")
        figure = int(FIGURES["a file told closed that has no size yet"])
        await until(lambda: meter.shown >= figure)
        await running.nothing_more(1.0)
        assert meter.read() == figure


async def test_a_listing_costs_what_the_page_says(site: SandboxDcache, meter: Meter, tmp_path: Path) -> None:
    all_of_it = int(FIGURES["a listing of all (one more for each further of `paths`)"])
    each = int(FIGURES["each directory in a listing"])
    further = int(FIGURES["more for each further 980 entries in one directory"])
    for count, pages in ((999, 0), (1000, 1), (1979, 1), (1980, 2)):
        for number in range(len(site.versions()), count):
            site.namespace.finish_upload(site.namespace.begin_upload(f"/data/in/a/{number:04}"), b"x")
        async with Bridge(site, tmp_path).running() as running:
            await running.healed()
            meter.read()
            await relisted(running)
            assert (count, meter.read()) == (count, all_of_it + 3 * each + pages * further)


async def test_files_found_by_listing_cost_what_the_page_says(
    site: SandboxDcache, meter: Meter, tmp_path: Path
) -> None:
    for number in range(20):
        await site.upload(f"/data/in/a/{number}", b"x")
    async with Bridge(site, tmp_path, first_start="everything").running() as running:
        await running.accept(20)
        await running.healed()
        each = int(FIGURES["each directory then"])
        found = int(FIGURES["a file found by listing"])
        assert meter.read() == int(START[False]) + 3 * each + 20 * found


async def test_a_cut_stream_and_a_lost_channel_cost_what_the_page_says(
    site: SandboxDcache, meter: Meter, tmp_path: Path
) -> None:
    async with Bridge(site, tmp_path).running() as running:
        await running.healed()
        await site.upload("/data/in/first", b"x")  # there is something to resume from
        await running.accept(1)
        await running.nothing_more(0.1)
        meter.read()
        site.trouble.drop_streams()
        await until(lambda: site.connected == 0)
        await until(lambda: site.connected)
        await running.healed()
        await running.nothing_more(0.5)
        assert meter.read() == int(FIGURES["stream cut"])
        site.trouble.restart()
        await until(lambda: len(site.watched) == 3)
        await running.healed()
        await running.nothing_more(1.0)
        each = int(FIGURES["each directory after that"])
        assert meter.read() == int(FIGURES["channel lost"]) + 3 * each


async def test_an_overflow_of_all_watches_lists_each_directory_about_once(
    site: SandboxDcache, meter: Meter, tmp_path: Path
) -> None:
    for number in range(40):
        await site.mkdir("/data/in/" + "/".join(f"{number % 4}{level}" for level in range(number // 4 + 1)))
    async with Bridge(site, tmp_path).running() as running:
        await running.healed()
        count = len(site.watched)
        meter.read()
        site.trouble.begin_overflow()
        await site.upload("/data/in/lost", b"x")
        site.trouble.end_overflow()
        await running.accept(1)
        await until(lambda: meter.shown >= count)
        await running.nothing_more(0.5)
        assert count <= meter.read() <= 2 * count


def test_the_page_has_every_figure_once() -> None:
    assert len(FIGURES) == len(re.findall(r"^\| .+? \| [0-9]+ \|$", PAGE, re.MULTILINE)) == 19


def quotations() -> Iterator[str]:
    """Give what the page's failures quote of the bridge: lines of its log, texts of `/readyz`, metrics."""
    table = PAGE.partition("## What happens when")[2].partition("\n## ")[0]
    for row in table.splitlines():
        if row.startswith("| ") and not row.startswith(("| | ", "| --- ")):
            yield from re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])


def test_the_page_quotes_what_the_bridge_says() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "bridge").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # as Python joins them
    quoted = list(quotations())
    assert len(quoted) > 30
    for text in quoted:
        metric = re.fullmatch(r'(bridge_\w+)(?:\{reason=("\w+")\})?', text)
        pieces = text.split("…") if metric is None else metric.groups("")
        for piece in pieces:
            assert piece.strip(" :,") in code, f"{text}: the bridge does not say so"


def test_who_reads_no_dcache_does_not_load_its_client() -> None:
    code = "import sys, bridge.app; sys.exit('bridge.sources.dcache.rest.connection' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
