"""How OSCAR refuses, and what the ingress before it says in its place."""

from __future__ import annotations

from aiohttp import web

NO_ROUTE = "404 page not found"
"""gin's."""
_PAGE = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center></body></html>\r\n"


class RefusedError(Exception):
    """The handler answers with this and does nothing."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.text = text

    def answer(self) -> web.Response:
        """As gin writes it."""
        return web.Response(status=self.status, text=self.text)


def ingress_text(status: int, reason: str) -> str:
    """Write a page of the ingress, which knows nothing of OSCAR."""
    return _PAGE.format(f"{status} {reason}")


def ingress_page(status: int, reason: str) -> web.Response:
    """Answer with such a page."""
    return web.Response(status=status, text=ingress_text(status, reason), content_type="text/html")
