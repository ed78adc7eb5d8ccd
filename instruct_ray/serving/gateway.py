"""HTTP -> replica: OpenAI's chat API, its errors and its streams."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from instruct_ray.serving.replica import ReplicaChunk
from instruct_ray.serving.schema import ChatRequest, ChunkMaker, ModelInfo, completion_body, error_body

RETRY_AFTER_SECONDS = 1
ANSWERED = ("stop", "length")
SERVER_ERROR = error_body("the engine failed on this request", kind="server_error")

api = FastAPI(title="instruct_ray", docs_url=None, redoc_url=None)


class Gateway:
    """The endpoint's routes; the deployment class is made of it in `app.py`."""

    def __init__(self, replica: DeploymentHandle) -> None:
        self._replica = replica
        self._stream = replica.options(stream=True)

    @api.get("/health")
    async def health(self) -> dict[str, str]:
        """Whether a replica answers, and with which version."""
        info = await self._info()
        return {"status": "ok", "model": info.name, "version": info.version}

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The model names that requests may carry."""
        info = await self._info()
        return {"object": "list", "data": [info.card(model_id) for model_id in info.ids]}

    @api.get("/v1/models/{model_id}")
    async def model(self, model_id: str) -> JSONResponse:
        """One of them."""
        info = await self._info()
        if model_id not in info.ids:
            return JSONResponse(error_body(f"no model {model_id!r} here", param="model", code="model_not_found"), 404)
        return JSONResponse(info.card(model_id))

    @api.post("/v1/chat/completions", response_model=None)
    async def chat(self, request: ChatRequest) -> JSONResponse | StreamingResponse:
        """Answer a chat, whole or as a stream of events."""
        pieces = self._stream.chat.remote(request)
        # Before the status line is sent: neither an overload nor a refusal may look like success.
        try:
            head: ReplicaChunk = await anext(pieces)
        except BackPressureError:
            return _overloaded()
        if head.refusal is not None:
            return JSONResponse(
                error_body(head.refusal.message, param=head.refusal.param, code=head.refusal.code), head.refusal.status
            )
        assert head.info is not None
        if request.stream:
            return StreamingResponse(_events(request, head.info, pieces), media_type="text/event-stream")
        text, last = "", head
        async for last in pieces:
            text += last.text
        if last.finish_reason not in ANSWERED:
            return JSONResponse(SERVER_ERROR, 500)
        return JSONResponse(completion_body(request, head.info, text, last.finish_reason, last.usage))

    async def _info(self) -> ModelInfo:
        info: ModelInfo = await self._replica.info.remote()
        return info


async def _events(request: ChatRequest, info: ModelInfo, pieces: AsyncIterator[ReplicaChunk]) -> AsyncIterator[str]:
    """Server-sent events; a failure ends in an error event and no [DONE]."""
    chunks = ChunkMaker(request, info)
    yield _event(chunks.delta({"role": "assistant", "content": ""}))
    last = ReplicaChunk()
    async for last in pieces:
        if last.text:
            yield _event(chunks.delta({"content": last.text}))
    if last.finish_reason not in ANSWERED:
        yield _event(SERVER_ERROR)
        return
    yield _event(chunks.delta({}, last.finish_reason))
    if request.stream_options and request.stream_options.include_usage:
        yield _event(chunks.usage(last.usage))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _overloaded() -> JSONResponse:
    body = error_body("too many requests are waiting; try again", kind="rate_limit_error", code="overloaded")
    return JSONResponse(body, 429, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


@api.exception_handler(RequestValidationError)
async def _on_bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
    problem = error.errors()[0]
    # The path of the field, never its value.
    param = ".".join(str(part) for part in problem["loc"][1:]) or None
    message = "not supported by this endpoint" if problem["type"] == "extra_forbidden" else problem["msg"]
    return JSONResponse(error_body(f"{param}: {message}" if param else message, param=param), 400)


@api.exception_handler(HTTPException)
async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(message), error.status_code)
