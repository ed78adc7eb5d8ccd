"""The responses of OpenAI's completions API."""

from collections.abc import Sequence

from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, TextToken, TokenCounts
from instruct_ray.serving.response_builder import (
    Body,
    build_header,
    build_usage,
    end_events,
    format_event,
    join_text,
)


class CompletionResponse:
    """Builds one response; all chunks of a stream have the same id and time."""

    def __init__(self, request: CompletionRequest, start: AnswerStart) -> None:
        self._request, self._start = request, start
        self._header = build_header(request, start, "text_completion", "cmpl")
        # Characters that were sent of each choice.
        self._offsets = [0] * start.num_choices

    def body(self, chunks: Sequence[Sequence[ReplicaChunk]], counts: TokenCounts) -> Body:
        """Build the body of a response that is not streamed from the chunks of each choice."""
        choices = []
        for index, of_choice in enumerate(chunks):
            tokens = tuple(token for chunk in of_choice for token in chunk.tokens)
            joined = ReplicaChunk(join_text(of_choice), of_choice[-1].finish_reason, choice=index, tokens=tokens)
            choices.append(self._build_choice(joined))
        return {**self._header, "choices": choices, "usage": build_usage(counts)}

    def opening_events(self) -> list[str]:
        """None: there are no roles."""
        return []

    def chunk_events(self, chunk: ReplicaChunk) -> list[str]:
        """New text of a choice, with its finish reason."""
        return [format_event({**self._header, "choices": [self._build_choice(chunk)]})]

    def closing_events(self, counts: TokenCounts) -> list[str]:
        """The token counts if they were asked for, and the end of the stream."""
        return end_events(self._request, self._header, counts)

    def error_event(self, body: Body) -> str:
        """The last event of a stream that failed: the body of an error response."""
        return format_event(body)

    def _build_choice(self, chunk: ReplicaChunk) -> Body:
        offset = self._offsets[chunk.choice]
        self._offsets[chunk.choice] += len(chunk.text)
        return {
            "index": chunk.choice,
            "text": chunk.text,
            "finish_reason": chunk.finish_reason,
            "logprobs": None if self._request.logprobs is None else _to_log_probs(chunk.tokens, offset),
        }


def _to_log_probs(tokens: Sequence[TextToken], offset: int) -> Body:
    """The `logprobs` of a choice, whose first token begins at a character of the text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }
