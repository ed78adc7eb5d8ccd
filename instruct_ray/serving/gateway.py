"""The HTTP gateway: routes OpenAI's chat API, with its errors and event streams, to the model replicas."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from instruct_ray.serving.replica import ChatError, ReplicaChunk
from instruct_ray.serving.schema import ChatRequest, ChunkBuilder, ModelInfo, build_completion, build_error

RETRY_AFTER_SECONDS = 1
# Finish reasons of a complete response; any other one is an error.
COMPLETE_REASONS = ("stop", "length")
SERVER_ERROR = build_error("the engine failed on this request", type="server_error")

api = FastAPI(title="instruct_ray", docs_url=None, redoc_url=None)


class Gateway:
    """The routes of the endpoint; `build_app` makes a Serve deployment of this class."""

    def __init__(self, replica: DeploymentHandle) -> None:
        self._replica = replica
        self._streaming_replica = replica.options(stream=True)

    @api.get("/health")
    async def health(self) -> dict[str, str]:
        """Report which version the endpoint serves; fails if no replica responds."""
        info = await self._get_info()
        return {"status": "ok", "model": info.name, "version": info.version}

    @api.get("/v1/models")
    async def list_models(self) -> dict[str, Any]:
        """List the model names that requests can use."""
        info = await self._get_info()
        return {"object": "list", "data": [info.to_openai_model(name) for name in info.served_names]}

    @api.get("/v1/models/{name}")
    async def get_model(self, name: str) -> JSONResponse:
        """Return the entry of one model name."""
        info = await self._get_info()
        if name not in info.served_names:
            return JSONResponse(build_error(f"no model {name!r} here", param="model", code="model_not_found"), 404)
        return JSONResponse(info.to_openai_model(name))

    @api.post("/v1/chat/completions", response_model=None)
    async def chat(self, request: ChatRequest) -> JSONResponse | StreamingResponse:
        """Answer a chat with one body, or with a stream of server-sent events."""
        responses = self._streaming_replica.chat.remote(request)
        # Wait for the first response before the status line is sent, so that an error never has the status 200.
        try:
            first: ModelInfo | ChatError = await anext(responses)
        except BackPressureError:
            return _overloaded()
        if isinstance(first, ChatError):
            return JSONResponse(build_error(first.message, param=first.param, code=first.code), first.status)
        if request.stream:
            return StreamingResponse(_stream_events(request, first, responses), media_type="text/event-stream")
        return await _collect(request, first, responses)

    async def _get_info(self) -> ModelInfo:
        info: ModelInfo = await self._replica.info.remote()
        return info


async def _collect(request: ChatRequest, info: ModelInfo, chunks: AsyncIterator[ReplicaChunk]) -> JSONResponse:
    """Join all chunks into one body."""
    text, last = "", ReplicaChunk()
    async for last in chunks:
        text += last.text
    if last.finish_reason not in COMPLETE_REASONS:
        return JSONResponse(SERVER_ERROR, 500)
    return JSONResponse(build_completion(request, info, text, last.finish_reason, last.usage))


async def _stream_events(
    request: ChatRequest, info: ModelInfo, chunks: AsyncIterator[ReplicaChunk]
) -> AsyncIterator[str]:
    """Yield server-sent events. After a failure the last one is an error event instead of [DONE]."""
    builder = ChunkBuilder(request, info)
    yield _format_event(builder.delta({"role": "assistant", "content": ""}))
    last = ReplicaChunk()
    async for last in chunks:
        if last.text:
            yield _format_event(builder.delta({"content": last.text}))
    if last.finish_reason not in COMPLETE_REASONS:
        yield _format_event(SERVER_ERROR)
        return
    yield _format_event(builder.delta({}, last.finish_reason))
    if request.stream_options and request.stream_options.include_usage:
        yield _format_event(builder.usage(last.usage))
    yield "data: [DONE]\n\n"


def _format_event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _overloaded() -> JSONResponse:
    body = build_error("too many requests are waiting; try again", type="rate_limit_error", code="overloaded")
    return JSONResponse(body, 429, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


@api.exception_handler(RequestValidationError)
async def _handle_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    first_error = error.errors()[0]
    # The path of the field, without its value: a response must not repeat what the client sent.
    param = ".".join(str(part) for part in first_error["loc"][1:]) or None
    is_unknown_field = first_error["type"] == "extra_forbidden"
    message = "not supported by this endpoint" if is_unknown_field else first_error["msg"]
    return JSONResponse(build_error(f"{param}: {message}" if param else message, param=param), 400)


@api.exception_handler(HTTPException)
async def _handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(build_error(message), error.status_code)
