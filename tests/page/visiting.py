"""A person before the status page, and the server that sends it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page
from prometheus_client import CollectorRegistry

from bridge.sandbox.servers import free_port
from bridge.web import HttpConfig, serve
from tests.page.fake import FakeBridge

TOKEN = "the-right-one"


def write_token(directory: Path) -> Path:
    """Write the token's file, as `http.token_file` wants it."""
    file = directory / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


class Visitor:
    """A person before the page; what the browser complains of is kept, and whom it asks."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))

    @classmethod
    async def of(
        cls, browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> Visitor:
        """Make one with a profile of its own; it is gone with the browser."""
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        return cls(await context.new_page())

    async def opens(self, url: str, token: str = TOKEN) -> None:
        """Open the page by its token."""
        await self.page.goto(url)
        await self.page.get_by_label("Token").fill(token)
        await self.page.keyboard.press("Enter")
        await self.page.locator("#main").wait_for()

    async def looks_again(self) -> None:
        """Have the page ask now, and not within two seconds."""
        await self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def assert_at_ease(self, url: str) -> None:
        """No foreign host was asked, and the browser complained of nothing."""
        assert self.complaints == []
        assert {urlsplit(asked).netloc for asked in self.requests} == {urlsplit(url).netloc}


class Site:
    """The real server of the page, before a bridge that is none."""

    def __init__(self, directory: Path, bridge: FakeBridge) -> None:
        self.bridge = bridge
        self._config = HttpConfig(port=free_port(), token_file=write_token(directory))
        self._stack = AsyncExitStack()
        self.url = f"http://{self._config.host}:{self._config.port}/"

    async def up(self) -> None:
        await self._stack.enter_async_context(
            serve(self._config, CollectorRegistry(), list, self.bridge.command)
        )

    async def down(self) -> None:
        await self._stack.aclose()
