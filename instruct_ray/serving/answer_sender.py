"""gateway: one request -> its response: asks a replica, and sends its answer as one body or as a stream."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from fastapi.responses import JSONResponse, StreamingResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.answer import ReplicaMessage
from instruct_ray.serving.answer_reader import AnswerFailedError, AnswerReader, WholeAnswer
from instruct_ray.serving.api_keys import ApiKey
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.endpoint_metrics import EndpointMetrics
from instruct_ray.serving.errors import (
    SERVER_ERROR,
    TIMEOUT_ERROR,
    build_error,
    error_response,
    overload_response,
    unavailable_response,
)
from instruct_ray.serving.key_limits import KeyLimits
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, RequestError, VersionInfo
from instruct_ray.serving.request_traces import RequestTrace, RequestTracer
from instruct_ray.serving.response_builder import ResponseBuilder

logger = logging.getLogger(__name__)

# A request whose replica dies before it is answered is sent to another one, once.
MAX_ATTEMPTS = 2
CLIENT_LEFT = 499

AnswerResponse = JSONResponse | StreamingResponse
AnyBody = ChatRequest | CompletionRequest
BuilderMaker = Callable[[AnswerStart], ResponseBuilder]


class AnswerSender:
    """Answers requests, and counts the tokens of answers."""

    def __init__(
        self, replica: DeploymentHandle, serving: ServingConfig, limits: KeyLimits, metrics: EndpointMetrics
    ) -> None:
        self._replica, self._streaming_replica = replica, replica.options(stream=True)
        self._max_seconds = serving.max_seconds
        self._limits, self._metrics, self._tracer = limits, metrics, RequestTracer(serving.tracing)

    async def answer(self, body: AnyBody, key: ApiKey | None, make_builder: BuilderMaker) -> AnswerResponse:
        """Answer a request, or say why not. Everything has to happen within `serving.max_seconds`."""
        trace = self._tracer.start(body, key)
        try:
            response = await self._try_to_answer(body, key, make_builder, trace)
        except BaseException as error:
            trace.end(CLIENT_LEFT if isinstance(error, asyncio.CancelledError) else 500, error=type(error).__name__)
            raise
        if not isinstance(response, StreamingResponse):
            trace.end(response.status_code)
        return response

    async def _try_to_answer(
        self, body: AnyBody, key: ApiKey | None, make_builder: BuilderMaker, trace: RequestTrace
    ) -> AnswerResponse:
        deadline = asyncio.get_running_loop().time() + self._max_seconds
        try:
            for _ in range(MAX_ATTEMPTS - 1):
                try:
                    return await self._ask(body, key, make_builder, deadline, trace)
                except RayActorError as error:
                    logger.warning("a replica died; its request is sent to another one: %s", error)
            return await self._ask(body, key, make_builder, deadline, trace)
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
        self, body: AnyBody, key: ApiKey | None, make_builder: BuilderMaker, deadline: float, trace: RequestTrace
    ) -> AnswerResponse:
        started = time.perf_counter()
        reader = AnswerReader(self._request_messages(body), deadline)
        is_streaming = False
        try:
            # Before the status line is sent, so that an error never has the status 200.
            start = await reader.read_start()
            if isinstance(start, RequestError):
                trace.end(start.status, error=start.code)
                error = build_error(start.message, param=start.param, code=start.code)
                return error_response(start.status, error)
            trace.see_start(start)
            builder, headers = make_builder(start), _version_headers(start.info)
            self._metrics.answers.labels(start.info.version).inc()
            is_streaming = body.stream
            if body.stream:
                # Now: a client may leave before the stream begins.
                self._count_tokens(key, reader.counts.num_prompt, 0)
                events = self._stream_events(builder, reader, key, started, trace)
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            chunks = await _collect(start, reader, trace)
            self._count_tokens(key, reader.counts.num_prompt, reader.counts.num_completion)
            trace.end(200, reader.counts)
            return JSONResponse(builder.body(chunks, reader.counts), headers=headers)
        finally:
            if not is_streaming:
                reader.close()

    def _request_messages(self, body: AnyBody) -> "DeploymentResponseGenerator[ReplicaMessage] | WholeAnswer":
        if body.stream:
            return self._streaming_replica.answer.remote(body)
        return WholeAnswer(self._replica.answer_whole.remote(body))

    async def _stream_events(
        self, builder: ResponseBuilder, reader: AnswerReader, key: ApiKey | None, started: float, trace: RequestTrace
    ) -> AsyncIterator[str]:
        """Yield server-sent events. After a failure the last one is an error event, and there is no [DONE]."""
        is_first, is_complete, failure = True, False, "client_left"
        try:
            for event in builder.opening_events():
                yield event
            async for chunk in reader.read_chunks():
                trace.see_chunk(chunk)
                if is_first:
                    self._metrics.first_token_seconds.observe(time.perf_counter() - started)
                    is_first = False
                for event in builder.chunk_events(chunk):
                    yield event
            for event in builder.closing_events(reader.counts):
                yield event
            is_complete = True
        except Exception as error:  # whatever failed, clients take a stream that just ends for a complete answer
            logger.exception("a stream failed")
            failure = type(error).__name__
            self._metrics.failed_streams.inc()
            yield builder.error_event(TIMEOUT_ERROR if isinstance(error, TimeoutError) else SERVER_ERROR)
        finally:
            reader.close()
            self._count_tokens(key, 0, reader.counts.num_completion)
            trace.end(200, reader.counts, None if is_complete else failure)

    def _count_tokens(self, key: ApiKey | None, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        name = key.name if key else ""
        self._metrics.tokens.labels("prompt", name).inc(num_prompt_tokens)
        self._metrics.tokens.labels("completion", name).inc(num_completion_tokens)
        if key is not None:
            self._limits.add_tokens(key, num_prompt_tokens + num_completion_tokens)


async def _collect(start: AnswerStart, reader: AnswerReader, trace: RequestTrace) -> list[list[ReplicaChunk]]:
    """The chunks of each choice."""
    chunks: list[list[ReplicaChunk]] = [[] for _ in range(start.num_choices)]
    async for chunk in reader.read_chunks():
        trace.see_chunk(chunk)
        chunks[chunk.choice].append(chunk)
    return chunks


def _version_headers(info: VersionInfo) -> dict[str, str]:
    """Which version answered."""
    return {
        "x-model-version": f"{info.name}/{info.version}",
        "x-contract-digest": info.contract_digest,
        "x-data-digest": info.data_digest or "",
    }
