"""gateway: ASGI middleware that lets only requests with a valid key, of a limited size, reach the routes."""

import asyncio
import ipaddress
from collections.abc import Set
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instruct_ray.serving.api_keys import ApiKey, ApiKeys
from instruct_ray.serving.errors import build_error, error_response
from instruct_ray.serving.key_limits import KeyLimits

# Answered without a key, for load balancers.
OPEN_PATHS = ("/health",)
# Paths whose requests count for the limits of a key although they are no POST.
COUNTED_PATHS = ("/health/generate",)
KEY_HELP = "send it as the header `Authorization: Bearer KEY`"
# Headers of a proxy: a request with one of them does not come from this machine, even if its connection does.
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")
BODY_SECONDS = 30.0


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class AccessControl:
    """Rejects a request, or passes it on.

    `request.state.api_key` is its key, None if it has none; `request.state.is_trusted` is false only where a path is
    open to requests without a valid key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        limits: KeyLimits,
        max_body_bytes: int,
        page_paths: Set[str],
        *,
        allow_without_key: bool,
    ) -> None:
        """Control access to `app`; `page_paths` are those of static pages without data, which need no key either."""
        self._app, self._keys, self._limits, self._max_body_bytes = app, keys, limits, max_body_bytes
        self._allow_without_key, self._open_paths = allow_without_key, page_paths | set(OPEN_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        key, path = self._find_key(scope), route_path(scope)
        is_refused = isinstance(key, JSONResponse)
        state = scope.setdefault("state", {})
        state |= {"api_key": None if is_refused else key, "is_trusted": not is_refused}
        if path in self._open_paths:
            await self._app(scope, receive, send)
            return
        response = key if isinstance(key, JSONResponse) else self._check_limits(key, scope["method"], path)
        if response is None:
            response, receive = await self._read_request(scope, receive)
        await (response or self._app)(scope, receive, send)

    def _find_key(self, scope: Scope) -> ApiKey | JSONResponse | None:
        """The key of a request, or the response that refuses it."""
        headers = Headers(scope=scope)
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if self._keys.are_required:
            key = self._keys.find(value.strip()) if scheme.lower() == "bearer" else None
            return key or _refuse("no valid API key; " + KEY_HELP)
        if self._allow_without_key or _is_local(scope, headers):
            return None
        return _refuse("this endpoint has no API keys, so it answers only its own machine; set serving.api_keys_file")

    def _check_limits(self, key: ApiKey | None, method: str, path: str) -> JSONResponse | None:
        """The response to a request for which its key has no room."""
        if key is None or (method != "POST" and path not in COUNTED_PATHS):
            return None
        seconds = self._limits.start_request(key)
        if seconds is None:
            return None
        message = f"the limit of the API key {key.name} is reached; try again in {seconds} s"
        body = build_error(message, type="rate_limit_error", code="rate_limit_exceeded")
        return error_response(429, body, {"Retry-After": str(seconds)})

    async def _read_request(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, Receive]:
        """Read the body; returns the response that refuses it, and what gives the body to the routes.

        Raises:
            ClientGoneError: the client left.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS):
                content = await _read_body(scope, receive, self._max_body_bytes)
        except TimeoutError:
            return error_response(408, build_error(f"no complete body came within {BODY_SECONDS:g} s")), receive
        if content is None:
            message = f"the body of a request may have at most {self._max_body_bytes} bytes"
            return error_response(413, build_error(message, code="request_too_large")), receive
        return None, _replay(content, receive)


def route_path(scope: Scope) -> str:
    """The path of a request below the prefix of its application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _refuse(message: str) -> JSONResponse:
    return error_response(401, build_error(message, code="invalid_api_key"), {"WWW-Authenticate": "Bearer"})


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine, and not from a page of another site in a browser here.

    Such a page has another origin, or the name of its own site that now resolves to this machine (DNS rebinding).
    """
    client, host = scope.get("client"), headers.get("host", "")
    if client is None or any(name in headers for name in PROXY_HEADERS):
        return False
    try:
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return False
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        # No address at all, such as `[::1`.
        return False
    return _is_loopback(client[0]) and (name == "localhost" or _is_loopback(name or ""))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes | None:
    """Read the body of a request; None if it is too large."""
    length = Headers(scope=scope).get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        return None
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        content += message.get("body", b"")
        if len(content) > max_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(content)


def _replay(content: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which has been read, and then what the connection gives."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receive_again
