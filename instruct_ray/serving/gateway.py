"""The HTTP gateway: the routes of OpenAI's API, answered by the model replicas."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.access_control import AccessControl
from instruct_ray.serving.answer_reader import AnswerFailedError, AnswerReader
from instruct_ray.serving.api_keys import ApiKey, ApiKeys
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.chat_response import ChatResponse
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.completion_response import CompletionResponse
from instruct_ray.serving.endpoint_metrics import EndpointMetrics, RequestCounter
from instruct_ray.serving.errors import (
    SERVER_ERROR,
    TIMEOUT_ERROR,
    add_error_handlers,
    build_error,
    error_response,
    overload_response,
    unavailable_response,
)
from instruct_ray.serving.key_limits import KeyLimits
from instruct_ray.serving.playground.routes import add_playground
from instruct_ray.serving.probe import generate_probe_token
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, RequestError, VersionInfo
from instruct_ray.serving.response_builder import ResponseBuilder
from instruct_ray.serving.responses_request import ResponsesRequest
from instruct_ray.serving.responses_response import ResponsesResponse
from instruct_ray.serving.served_version import NoReplicaError, ServedVersion

logger = logging.getLogger(__name__)

# A request whose replica dies before it is answered is sent to another one, once.
MAX_ATTEMPTS = 2

AnswerResponse = JSONResponse | StreamingResponse


class Gateway:
    """The routes of the endpoint; `build_app` makes a Serve deployment of this class."""

    def __init__(self, replica: DeploymentHandle, serving: ServingConfig) -> None:
        """Read the API keys.

        Raises:
            InputError: serving.api_keys_file can't be read or is invalid.
        """
        limits = serving.autoscaling
        scales_to_zero = limits is not None and not limits.min_replicas
        self._version = ServedVersion(replica, scales_to_zero=scales_to_zero)
        self._streaming_replica = replica.options(stream=True)
        self._serving = serving
        self._keys, self._limits, self._metrics = ApiKeys(serving.api_keys_file), KeyLimits(), EndpointMetrics()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the web application; Ray Serve calls this once.

        Raises:
            InputError: serving.feedback_file can't be written.
        """
        api = FastAPI(title="instruct_ray", docs_url=None, redoc_url=None)
        api.get("/health")(self.health)
        api.get("/health/generate")(self.health_generate)
        api.get("/metrics")(self.metrics)
        api.get("/v1/models")(self.list_models)
        api.get("/v1/models/{name:path}", response_model=None)(self.get_model)
        api.post("/v1/chat/completions", response_model=None)(self.chat)
        api.post("/v1/completions", response_model=None)(self.complete)
        api.post("/v1/responses", response_model=None)(self.respond)
        open_paths = add_playground(api, self._serving)
        add_error_handlers(api)
        api.add_exception_handler(NoReplicaError, _handle_no_replica)
        paths = frozenset(str(route.path) for route in api.routes if isinstance(route, APIRoute))
        access = AccessControl(
            api,
            self._keys,
            self._limits,
            self._serving.max_body_bytes,
            open_paths,
            allow_without_key=self._serving.allow_without_key,
        )
        return RequestCounter(access, self._metrics, paths)

    async def health(self, request: Request) -> JSONResponse:
        """Report which version the endpoint serves and, to those with a key, what it does not serve and why."""
        info = await self._version.get()
        values = {"status": "ok", "model": info.name, "version": info.version}
        reasons = {"not_followed": info.not_followed, "not_served": info.not_served}
        return JSONResponse(values | (reasons if request.state.is_trusted else {}))

    async def health_generate(self) -> JSONResponse:
        """Generate a token; the status is 503 if the engine does not."""
        return await generate_probe_token(self._version, self._streaming_replica)

    async def metrics(self) -> Response:
        """Return the metrics of this gateway for Prometheus."""
        try:
            info = await self._version.get()
        except NoReplicaError:
            info = None
        return Response(self._metrics.render(info), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self) -> dict[str, Any]:
        """List the model names that requests can use."""
        info = await self._version.get()
        return {"object": "list", "data": [info.to_openai_model(name) for name in info.served_models]}

    async def get_model(self, name: str) -> JSONResponse:
        """Return the entry of one model name."""
        info = await self._version.get()
        if name not in info.served_models:
            return error_response(404, build_error(f"no model {name!r} here", param="model", code="model_not_found"))
        return JSONResponse(info.to_openai_model(name))

    async def chat(self, body: ChatRequest, request: Request) -> AnswerResponse:
        """Answer a chat with one body, or with a stream of server-sent events."""
        return await self._answer(body, request.state.api_key, lambda start: ChatResponse(body, start))

    async def complete(self, body: CompletionRequest, request: Request) -> AnswerResponse:
        """Continue texts with one body, or with a stream of server-sent events."""
        return await self._answer(body, request.state.api_key, lambda start: CompletionResponse(body, start))

    async def respond(self, body: ResponsesRequest, request: Request) -> AnswerResponse:
        """Answer a request of the responses API with one body, or with a stream of server-sent events."""
        chat = body.to_chat()
        return await self._answer(chat, request.state.api_key, lambda start: ResponsesResponse(body, start))

    async def _answer(
        self,
        body: ChatRequest | CompletionRequest,
        key: ApiKey | None,
        make_builder: Callable[[AnswerStart], ResponseBuilder],
    ) -> AnswerResponse:
        """Answer a request, or say why not. Everything has to happen within `serving.max_seconds`."""
        deadline = _deadline(self._serving.max_seconds)
        try:
            for _ in range(MAX_ATTEMPTS - 1):
                try:
                    return await self._ask(body, key, make_builder, deadline)
                except RayActorError as error:
                    logger.warning("a replica died; its request is sent to another one: %s", error)
            return await self._ask(body, key, make_builder, deadline)
        except BackPressureError:
            self._metrics.refused.inc()
            return overload_response()
        except DeploymentUnavailableError:
            return unavailable_response()
        except TimeoutError:
            return error_response(504, TIMEOUT_ERROR)
        except AnswerFailedError as error:
            logger.error("a request failed: %s", error)
            return error_response(500, SERVER_ERROR)

    async def _ask(
        self,
        body: ChatRequest | CompletionRequest,
        key: ApiKey | None,
        make_builder: Callable[[AnswerStart], ResponseBuilder],
        deadline: float,
    ) -> AnswerResponse:
        started = time.perf_counter()
        reader = AnswerReader(self._streaming_replica.answer.remote(body), deadline)
        is_streaming = False
        try:
            # Before the status line is sent, so that an error never has the status 200.
            start = await reader.read_start()
            if isinstance(start, RequestError):
                error = build_error(start.message, param=start.param, code=start.code)
                return error_response(start.status, error)
            builder, headers = make_builder(start), _version_headers(start.info)
            self._metrics.answers.labels(start.info.version).inc()
            is_streaming = body.stream
            if body.stream:
                # Now: a client may leave before the stream begins.
                self._count_tokens(key, reader.num_prompt_tokens, 0)
                events = self._stream_events(builder, reader, key, started)
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            chunks = await _collect(start, reader)
            self._count_tokens(key, reader.num_prompt_tokens, reader.num_completion_tokens)
            return JSONResponse(builder.body(chunks), headers=headers)
        finally:
            if not is_streaming:
                reader.close()

    async def _stream_events(
        self, builder: ResponseBuilder, reader: AnswerReader, key: ApiKey | None, started: float
    ) -> AsyncIterator[str]:
        """Yield server-sent events. After a failure the last one is an error event, and there is no [DONE]."""
        is_first = True
        try:
            for event in builder.opening_events():
                yield event
            async for chunk in reader.read_chunks():
                if is_first:
                    self._metrics.first_token_seconds.observe(time.perf_counter() - started)
                    is_first = False
                for event in builder.chunk_events(chunk):
                    yield event
            for event in builder.closing_events(reader.num_completion_tokens):
                yield event
        except Exception as error:  # whatever failed, clients take a stream that just ends for a complete answer
            logger.exception("a stream failed")
            self._metrics.failed_streams.inc()
            yield builder.error_event(TIMEOUT_ERROR if isinstance(error, TimeoutError) else SERVER_ERROR)
        finally:
            reader.close()
            self._count_tokens(key, 0, reader.num_completion_tokens)

    def _count_tokens(self, key: ApiKey | None, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        name = key.name if key else ""
        self._metrics.tokens.labels("prompt", name).inc(num_prompt_tokens)
        self._metrics.tokens.labels("completion", name).inc(num_completion_tokens)
        if key is not None:
            self._limits.add_tokens(key, num_prompt_tokens + num_completion_tokens)


async def _collect(start: AnswerStart, reader: AnswerReader) -> list[list[ReplicaChunk]]:
    """The chunks of each choice."""
    chunks: list[list[ReplicaChunk]] = [[] for _ in range(start.num_choices)]
    async for chunk in reader.read_chunks():
        chunks[chunk.choice].append(chunk)
    return chunks


def _deadline(seconds: float) -> float:
    """A time of the event loop."""
    return asyncio.get_running_loop().time() + seconds


async def _handle_no_replica(request: Request, error: Exception) -> JSONResponse:
    return unavailable_response()


def _version_headers(info: VersionInfo) -> dict[str, str]:
    """Which version answered."""
    return {
        "x-model-version": f"{info.name}/{info.version}",
        "x-contract-digest": info.contract_digest,
        "x-data-digest": info.data_digest or "",
    }
