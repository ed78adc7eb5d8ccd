"""gateway: the static page of the playground and its files, which hold no data."""

from collections.abc import Callable, Coroutine
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

FOLDER = Path(__file__).parent
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# URL paths and the file of each.
PAGE_FILES = {
    "/": "playground.html",
    "/playground/playground.css": "playground.css",
    "/playground/playground.js": "playground.js",
    "/playground/endpoint_client.js": "endpoint_client.js",
    "/playground/answer_card.js": "answer_card.js",
}
HEADERS = {
    # Only files of this endpoint run, requests go nowhere else, and text can't become HTML or a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Files of one release, together.
    "Cache-Control": "no-cache",
}


def add_page(api: FastAPI) -> None:
    """Add the page and its files; they are not part of the OpenAPI schema."""
    for path, name in PAGE_FILES.items():
        file = FOLDER / name
        api.get(path, include_in_schema=False)(_make_route(file.read_bytes(), MEDIA_TYPES[file.suffix]))


def _make_route(content: bytes, media_type: str) -> Callable[[], Coroutine[None, None, Response]]:
    async def send_file() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return send_file
