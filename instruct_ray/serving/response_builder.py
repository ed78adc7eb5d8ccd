"""Bodies and event streams of responses of OpenAI's APIs: what they have in common."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, TokenCounts
from instruct_ray.serving.request_fields import GenerationFields

Body = dict[str, Any]
STREAM_END = "data: [DONE]\n\n"
# No end of a line in an event stream or in JSON, but many clients split lines at them (`str.splitlines`, httpx).
OTHER_LINE_BREAKS = str.maketrans({character: f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"})


class ResponseBuilder(Protocol):
    """Builds one response, either its body or the events of its stream."""

    def body(self, chunks: Sequence[Sequence[ReplicaChunk]], counts: TokenCounts) -> Body:
        """Build the body of a response that is not streamed from the chunks of each choice."""

    def opening_events(self) -> list[str]:
        """The events of a stream before the first chunk."""

    def chunk_events(self, chunk: ReplicaChunk) -> list[str]:
        """The events of a chunk."""

    def closing_events(self, counts: TokenCounts) -> list[str]:
        """The events after the last chunk of a complete stream."""

    def error_event(self, body: Body) -> str:
        """The last event of a stream that failed, from the body of an error response."""


def format_event(body: Body, name: str | None = None) -> str:
    """A server-sent event, with its name if it has one."""
    data = f"data: {json.dumps(body, ensure_ascii=False).translate(OTHER_LINE_BREAKS)}\n\n"
    return data if name is None else f"event: {name}\n{data}"


def build_header(request: GenerationFields, start: AnswerStart, object_type: str, prefix: str) -> Body:
    """The fields that the body and all events of a response share."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": object_type,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": start.info.fingerprint,
    }


def build_usage(counts: TokenCounts) -> Body:
    """The `usage` of a response."""
    return {
        "prompt_tokens": counts.num_prompt,
        "completion_tokens": counts.num_completion,
        "total_tokens": counts.num_prompt + counts.num_completion,
        "prompt_tokens_details": {"cached_tokens": counts.num_cached},
    }


def end_events(request: GenerationFields, header: Body, counts: TokenCounts) -> list[str]:
    """The last events of a complete stream: the token counts if they were asked for, and the end."""
    if not request.includes_usage:
        return [STREAM_END]
    return [format_event({**header, "choices": [], "usage": build_usage(counts)}), STREAM_END]


def join_text(chunks: Sequence[ReplicaChunk]) -> str:
    """The text of a choice."""
    return "".join(chunk.text for chunk in chunks)
