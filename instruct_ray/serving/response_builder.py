"""Bodies and event streams of responses of OpenAI's APIs: what they have in common."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk
from instruct_ray.serving.request_fields import GenerationFields

Body = dict[str, Any]
STREAM_END = "data: [DONE]\n\n"


class ResponseBuilder(Protocol):
    """Builds one response, either its body or the events of its stream."""

    def body(self, chunks: Sequence[Sequence[ReplicaChunk]]) -> Body:
        """Build the body of a response that is not streamed from the chunks of each choice."""

    def opening_events(self) -> list[str]:
        """The events of a stream before the first chunk."""

    def chunk_events(self, chunk: ReplicaChunk) -> list[str]:
        """The events of a chunk."""

    def closing_events(self, num_completion_tokens: int) -> list[str]:
        """The events after the last chunk of a complete stream."""

    def error_event(self, body: Body) -> str:
        """The last event of a stream that failed, from the body of an error response."""


def format_event(body: Body) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def build_header(request: GenerationFields, start: AnswerStart, object_type: str, prefix: str) -> Body:
    """The fields that the body and all events of a response share."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": object_type,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": start.info.fingerprint,
    }


def build_usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    """The token counts of a response; a prompt counts once, however many choices it has."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }


def end_events(request: GenerationFields, start: AnswerStart, header: Body, num_completion_tokens: int) -> list[str]:
    """The last events of a complete stream: the token counts if they were asked for, and the end."""
    if not request.includes_usage:
        return [STREAM_END]
    usage = build_usage(start.num_prompt_tokens, num_completion_tokens)
    return [format_event({**header, "choices": [], "usage": usage}), STREAM_END]


def join_text(chunks: Sequence[ReplicaChunk]) -> str:
    """The text of a choice."""
    return "".join(chunk.text for chunk in chunks)


def count_tokens(chunks: Sequence[Sequence[ReplicaChunk]]) -> int:
    """The completion tokens of all choices."""
    return sum(chunk.num_tokens for of_choice in chunks for chunk in of_choice)
