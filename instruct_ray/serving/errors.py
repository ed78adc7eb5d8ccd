"""gateway: error responses in the form of OpenAI's API."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

OVERLOAD_RETRY_SECONDS = 1
# Errors after which the same request may succeed. One that took too long would take as long again.
RETRIED_STATUSES = (408, 409, 429, 500, 503)


def build_error(
    message: str, type: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Build the body of an error response."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


SERVER_ERROR = build_error("the engine failed on this request", type="server_error")
TIMEOUT_ERROR = build_error("the request took too long", type="server_error", code="timeout")


def error_response(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    """An error response. OpenAI's clients are told where trying again can't help."""
    final = {} if status in RETRIED_STATUSES else {"x-should-retry": "false"}
    return JSONResponse(body, status, headers=final | (headers or {}))


def overload_response() -> JSONResponse:
    """The response to a request for which there is no room."""
    body = build_error("too many requests are waiting; try again", type="rate_limit_error", code="overloaded")
    return error_response(429, body, {"Retry-After": str(OVERLOAD_RETRY_SECONDS)})


def add_error_handlers(api: FastAPI) -> None:
    """Give every error of an application, also those of FastAPI itself, the form of OpenAI's API."""
    api.add_exception_handler(RequestValidationError, _handle_invalid_request)
    api.add_exception_handler(RayError, _handle_replica_error)
    api.add_exception_handler(RayServeException, _handle_replica_error)
    api.add_exception_handler(HTTPException, _handle_http_error)
    api.add_exception_handler(Exception, _handle_unexpected_error)


async def _handle_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Of a field that may have several types, the type that fitted best: one that fits but for its value.
    problem = max(error.errors(), key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    # The path of the field, without its value: a response must not repeat what the client sent. Of a body that is not
    # JSON it is a position.
    path = () if problem["type"] == "json_invalid" else problem["loc"][1:]
    param = ".".join(str(part) for part in path if not _is_type_name(part)) or None
    is_unknown_field = problem["type"] == "extra_forbidden"
    message = "not supported by this endpoint" if is_unknown_field else problem["msg"]
    return error_response(400, build_error(f"{param}: {message}" if param else message, param=param))


def _is_type_name(part: int | str) -> bool:
    """Whether a part of a field's path names a type, as `list[TextPart]` or `InputMessage`, and no field."""
    return isinstance(part, str) and (part == "str" or not part.isidentifier() or part[0].isupper())


async def _handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again, and Serve logs it.
    return error_response(500, SERVER_ERROR)


async def _handle_replica_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed: %s", request.method, request.url.path, error)
    return error_response(500, SERVER_ERROR)


def unavailable_response() -> JSONResponse:
    """The response while no replica can answer."""
    body = build_error("no replica of the model can answer now", type="server_error", code="unavailable")
    return error_response(503, body, {"Retry-After": str(OVERLOAD_RETRY_SECONDS)})


async def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(error.status_code, build_error(message), dict(error.headers or {}))
