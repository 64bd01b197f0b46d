"""The API reference: both documents, and a page that shows them and sends requests.

All of it is the same for everybody and needs no key. The page loads nothing from anywhere else, and its policy forbids
it: whoever runs this server behind a firewall has the same page, and a key typed into it goes nowhere else.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files

import msgspec
from starlette.responses import Response

from control_plane.web.asyncapi import asyncapi_document
from control_plane.web.openapi import openapi_document
from control_plane.web.routes import Call, Route
from control_plane.web.shapes import NoQuery

_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_PAGE = {
    "/reference": ("index.html", "text/html"),
    "/reference/page.css": ("page.css", "text/css"),
    "/reference/page.js": ("page.js", "text/javascript"),
}


def reference_routes(described: Sequence[Route]) -> tuple[Route, ...]:
    """Routes that show `described`, and are not described themselves."""
    page = files("control_plane.web").joinpath("reference_page")
    contents: list[tuple[str, str, Callable[[], bytes]]] = [
        (path, media_type, page.joinpath(name).read_bytes) for path, (name, media_type) in _PAGE.items()
    ]
    contents += [
        ("/openapi.json", "application/json", lambda: msgspec.json.encode(openapi_document(described))),
        ("/asyncapi.json", "application/json", lambda: msgspec.json.encode(asyncapi_document())),
    ]
    return tuple(_route(*content) for content in contents)


def _route(path: str, media_type: str, content: Callable[[], bytes]) -> Route:
    made: list[bytes] = []

    async def show(_: Call[NoQuery, None]) -> Response:
        if not made:
            made.append(content())
        return Response(made[0], media_type=media_type, headers=_HEADERS)

    return Route(method="GET", path=path, handler=show, key_needed=False)
