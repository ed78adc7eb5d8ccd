"""The HTTP gateway: the routes of OpenAI's API, answered by the model replicas."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.access_control import AccessControl
from instruct_ray.serving.answer_sender import AnswerResponse, AnswerSender
from instruct_ray.serving.api_keys import ApiKeys
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.chat_response import ChatResponse
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.completion_response import CompletionResponse
from instruct_ray.serving.endpoint_metrics import EndpointMetrics, RequestCounter
from instruct_ray.serving.errors import add_error_handlers, build_error, error_response, unavailable_response
from instruct_ray.serving.key_limits import KeyLimits
from instruct_ray.serving.playground.routes import add_playground
from instruct_ray.serving.probe import generate_probe_token
from instruct_ray.serving.responses_request import ResponsesRequest
from instruct_ray.serving.responses_response import ResponsesResponse
from instruct_ray.serving.served_version import NoReplicaError, ServedVersion


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
        self._sender = AnswerSender(replica, serving, self._limits, self._metrics)

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
        return await self._sender.answer(body, request.state.api_key, lambda start: ChatResponse(body, start))

    async def complete(self, body: CompletionRequest, request: Request) -> AnswerResponse:
        """Continue texts with one body, or with a stream of server-sent events."""
        return await self._sender.answer(body, request.state.api_key, lambda start: CompletionResponse(body, start))

    async def respond(self, body: ResponsesRequest, request: Request) -> AnswerResponse:
        """Answer a request of the responses API with one body, or with a stream of server-sent events."""
        chat = body.to_chat()
        return await self._sender.answer(chat, request.state.api_key, lambda start: ResponsesResponse(body, start))


async def _handle_no_replica(request: Request, error: Exception) -> JSONResponse:
    return unavailable_response()
