"""gateway: a trace of each request, as OpenTelemetry's conventions for generative AI describe it.

Requests only note what happens; a thread sends finished traces (`MlflowSpanExporter`). Its queue is bounded: while the
server is down or slow, traces are dropped, and no request waits.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer

from instruct_ray.config.serving import TracingConfig
from instruct_ray.serving.api_keys import ApiKey
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, TokenCounts
from instruct_ray.serving.trace_exporter import MlflowSpanExporter

# With texts of MAX_TEXT_CHARACTERS the queue takes up to about 40 MB.
MAX_QUEUED_SPANS = 1024
SPANS_PER_EXPORT = 128
EXPORT_DELAY_MS = 2000
MAX_TEXT_CHARACTERS = 20_000


class RequestTracer:
    """Traces the requests of one gateway, or does nothing without a configuration."""

    def __init__(self, tracing: TracingConfig | None) -> None:
        self._tracer: Tracer = NoOpTracer() if tracing is None else _make_provider(tracing).get_tracer("instruct_ray")
        self._records_text = tracing is not None and tracing.record_text

    def start(self, body: ChatRequest | CompletionRequest, key: ApiKey | None) -> "RequestTrace":
        """Begin the trace of a request."""
        operation = "chat" if isinstance(body, ChatRequest) else "text_completion"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "instruct_ray",
            "gen_ai.request.model": body.model,
            "gen_ai.request.temperature": body.temperature,
            "gen_ai.request.choice.count": body.n,
            "gen_ai.request.stream": body.stream,
        }
        if key is not None:
            attributes["instruct_ray.api_key"] = key.name
        if self._records_text:
            attributes["gen_ai.input.messages"] = _dump_prompt(body)
        span = self._tracer.start_span(f"{operation} {body.model}", kind=SpanKind.SERVER, attributes=attributes)
        return RequestTrace(span, is_streamed=body.stream, records_text=self._records_text and span.is_recording())


class RequestTrace:
    """Notes what happens to one request; `end` has to be called, and only its first call counts."""

    def __init__(self, span: Span, *, is_streamed: bool, records_text: bool) -> None:
        self._span, self._records_text = span, records_text
        self._started = time.perf_counter()
        self._needs_first_chunk, self._has_ended = is_streamed, False
        self._finish_reasons: list[str] = []
        self._texts: dict[int, str] = {}

    def see_start(self, start: AnswerStart) -> None:
        """Note which version answers."""
        info = start.info
        self._span.set_attributes(
            {
                "gen_ai.response.model": f"{info.name}/{info.version}",
                "instruct_ray.contract_digest": info.contract_digest,
                "instruct_ray.data_digest": info.data_digest or "",
            }
        )

    def see_chunk(self, chunk: ReplicaChunk) -> None:
        """Note a part of the answer."""
        if not self._span.is_recording():
            return
        if self._needs_first_chunk:
            self._needs_first_chunk = False
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - self._started)
        if chunk.finish_reason is not None:
            self._finish_reasons.append(chunk.finish_reason)
        if self._records_text:
            text = self._texts.get(chunk.choice, "") + chunk.text
            self._texts[chunk.choice] = text[:MAX_TEXT_CHARACTERS]

    def end(self, status: int, counts: TokenCounts | None = None, error: str | None = None) -> None:
        """End the trace.

        Args:
            status: the HTTP status of the response; 499 if the client left before.
            counts: the tokens of the answer, if there is one.
            error: what went wrong: a code, without the text of a request.
        """
        if self._has_ended:
            return
        self._has_ended = True
        self._span.set_attribute("http.response.status_code", status)
        if counts is not None:
            self._span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": counts.num_prompt,
                    "gen_ai.usage.cache_read.input_tokens": counts.num_cached,
                    "gen_ai.usage.output_tokens": counts.num_completion,
                    "gen_ai.response.finish_reasons": self._finish_reasons,
                }
            )
        if self._texts:
            self._span.set_attribute(
                "gen_ai.output.messages", _dump([("assistant", one) for one in self._texts.values()])
            )
        if error is not None or status >= 400:
            self._span.set_attribute("error.type", error or str(status))
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()


def _make_provider(tracing: TracingConfig) -> TracerProvider:
    # Not the global provider of the process, which belongs to whoever runs Ray Serve.
    provider = TracerProvider(
        sampler=TraceIdRatioBased(tracing.sample_share), resource=Resource.create({"service.name": "instruct_ray"})
    )
    processor = BatchSpanProcessor(
        MlflowSpanExporter(tracing),
        max_queue_size=MAX_QUEUED_SPANS,
        schedule_delay_millis=EXPORT_DELAY_MS,
        max_export_batch_size=SPANS_PER_EXPORT,
    )
    provider.add_span_processor(processor)
    return provider


def _dump_prompt(body: ChatRequest | CompletionRequest) -> str:
    if isinstance(body, CompletionRequest):
        return _dump([("user", prompt) for prompt in body.prompts])
    return _dump([(message["role"], message["content"]) for message in (one.to_message() for one in body.messages)])


def _dump(messages: Sequence[tuple[str, str]]) -> str:
    """Messages as JSON, each cut so that all of them have at most MAX_TEXT_CHARACTERS."""
    limit = MAX_TEXT_CHARACTERS // len(messages)
    return json.dumps([{"role": role, "content": text[:limit]} for role, text in messages], ensure_ascii=False)
