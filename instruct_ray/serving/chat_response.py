"""The responses of OpenAI's chat completions API."""

from collections.abc import Sequence
from typing import Any

from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, TextToken, TokenCounts, ToolCall
from instruct_ray.serving.response_builder import (
    Body,
    build_header,
    build_usage,
    end_events,
    format_event,
    join_text,
)


class ChatResponse:
    """Builds one response; all chunks of a stream have the same id and time."""

    def __init__(self, request: ChatRequest, start: AnswerStart) -> None:
        self._request, self._start = request, start
        object_type = "chat.completion.chunk" if request.stream else "chat.completion"
        self._header = build_header(request, start, object_type, "chatcmpl")

    def body(self, chunks: Sequence[Sequence[ReplicaChunk]], counts: TokenCounts) -> Body:
        """Build the body of a response that is not streamed from the chunks of each choice."""
        choices = [self._build_choice(index, of_choice) for index, of_choice in enumerate(chunks)]
        return {**self._header, "choices": choices, "usage": build_usage(counts)}

    def opening_events(self) -> list[str]:
        """The role of each choice."""
        return [self._event(choice, {"role": "assistant", "content": ""}) for choice in range(self._start.num_choices)]

    def chunk_events(self, chunk: ReplicaChunk) -> list[str]:
        """New content of a choice, and its finish reason."""
        events = []
        if chunk.text or chunk.tokens:
            log_probs = _to_log_probs(chunk.tokens) if chunk.tokens else None
            events.append(self._event(chunk.choice, {"content": chunk.text}, log_probs=log_probs))
        if chunk.tool_calls:
            calls = [{"index": index, **_to_call(call)} for index, call in enumerate(chunk.tool_calls)]
            events.append(self._event(chunk.choice, {"tool_calls": calls}))
        if chunk.finish_reason is not None:
            events.append(self._event(chunk.choice, {}, chunk.finish_reason))
        return events

    def closing_events(self, counts: TokenCounts) -> list[str]:
        """The token counts if they were asked for, and the end of the stream."""
        return end_events(self._request, self._header, counts)

    def error_event(self, body: Body) -> str:
        """The last event of a stream that failed: the body of an error response."""
        return format_event(body)

    def _event(self, choice: int, delta: Body, finish_reason: str | None = None, log_probs: Any = None) -> str:
        content = {"index": choice, "delta": delta, "finish_reason": finish_reason, "logprobs": log_probs}
        return format_event({**self._header, "choices": [content]})

    def _build_choice(self, index: int, chunks: Sequence[ReplicaChunk]) -> Body:
        tokens = [token for chunk in chunks for token in chunk.tokens]
        message: Body = {"role": "assistant", "content": join_text(chunks), "refusal": None}
        if calls := [_to_call(call) for call in chunks[-1].tool_calls]:
            message |= {"content": message["content"] or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "finish_reason": chunks[-1].finish_reason,
            "logprobs": _to_log_probs(tokens) if self._request.logprobs else None,
        }


def _to_call(call: ToolCall) -> Body:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _to_log_probs(tokens: Sequence[TextToken]) -> Body:
    """The `logprobs` of a choice or a delta."""
    content = [
        {**_log_prob_entry(token.text, token.log_prob), "top_logprobs": [_log_prob_entry(*top) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _log_prob_entry(text: str, log_prob: float) -> Body:
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode("utf-8", "replace"))}
