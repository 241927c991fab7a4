"""Debian's Chromium without a window, driven by Playwright.

Selenium needs Debian's chromium-driver, which brings the whole browser and a desktop's libraries with it, and
has no say in the colour scheme and no ear for what the page's console and its requests tell.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright, expect

from tests.servers.debian import PACKAGES, need

PACKAGE = "chromium-headless-shell"
_WAIT_MS = 30_000
"""For whatever is waited for: a busy machine is slow, and no failure."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser while inside; skips the test where it is not installed."""
    need(PACKAGE)
    expect.set_options(timeout=_WAIT_MS)
    async with async_playwright() as playwright:
        # Its sandbox asks for rights that a container does not give; here it shows nothing but our own page.
        browser = await playwright.chromium.launch(executable_path=PACKAGES[PACKAGE], args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
