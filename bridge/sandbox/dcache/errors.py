"""How dCache refuses: a status and a small JSON document."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web


class RefusalError(Exception):
    """Ends a request with this status; `message` is None where dCache tells no more than the reason."""

    def __init__(self, status: int, message: str | None = None) -> None:
        self.status = status
        self.message = message if message is not None else HTTPStatus(status).phrase
        super().__init__(f"{status} {self.message}")


def answer(refusal: RefusalError, *, rfc7807: bool) -> web.Response:
    """The refusal as `restful/providers/ErrorResponseProvider.java` writes it, today's form or the older."""
    status = str(refusal.status)
    if rfc7807:
        title = HTTPStatus(refusal.status).phrase
        document: object = {"status": status, "title": title, "detail": refusal.message}
    else:
        document = {"errors": [{"message": refusal.message, "status": status}]}
    response = web.json_response(document, status=refusal.status)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        # org/dcache/http/AuthenticationHandler.java adds the challenge to every 401.
        response.headers["WWW-Authenticate"] = 'Basic realm=""'
    return response
