"""Takes the pictures in docs/status-page.md: `python -m tests.page.screenshots`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.page.fake import FakeBridge
from tests.page.visiting import Site, Visitor
from tests.servers.chromium import chromium

DOCS = Path(__file__).parents[2] / "docs" / "status-page"


async def take(directory: Path) -> None:
    site = Site(directory, FakeBridge())
    await site.up()
    DOCS.mkdir(exist_ok=True)
    try:
        async with chromium() as browser:
            for name, visitor in {
                "light": await Visitor.of(browser, width=1100, height=940),
                "dark": await Visitor.of(browser, width=1100, height=940, dark=True),
                "narrow": await Visitor.of(browser, width=360, height=780),
            }.items():
                await visitor.opens(site.url)
                page = visitor.page
                await page.locator("#plots svg").first.wait_for()
                await page.screenshot(path=DOCS / f"{name}.png")
                if name == "light":
                    await page.locator('[data-node="service plants"]').click()
                    await page.locator("#part").screenshot(path=DOCS / "part.png")
                    await page.keyboard.press("Escape")
                    await page.set_viewport_size({"width": 1100, "height": 4000})
                    await page.locator("#dead").screenshot(path=DOCS / "dead-letters.png")
                    await page.locator("#hours").screenshot(path=DOCS / "hours.png")
                    await page.get_by_label("File, key, event id or job").fill("leaf-1.nc")
                    await page.keyboard.press("Enter")
                    await page.locator("#found article").wait_for()
                    await page.locator("#find").screenshot(path=DOCS / "found.png")
    finally:
        await site.down()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(take(Path(directory)))
