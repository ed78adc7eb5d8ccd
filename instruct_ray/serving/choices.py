"""The choices of one request: their tokens, as the engine generates them, become chunks of text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from instruct_ray.inference.engine import Engine, FinishReason, GenerationRequest, SamplingParams, Token
from instruct_ray.serving.call_stream import CallStream
from instruct_ray.serving.replica_messages import ReplicaChunk, TextToken
from instruct_ray.serving.text_stream import TextStream
from instruct_ray.serving.tool_use import ToolUse


class Choice:
    """One of the completions that answer a request."""

    def __init__(
        self,
        index: int,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str],
        tool_use: ToolUse | None = None,
        *,
        is_first: bool = True,
    ) -> None:
        """Begin a choice; `is_first` says whether it is the first one of its prompt."""
        self.index, self.prompt_ids, self.sampling, self.is_first = index, prompt_ids, sampling, is_first
        self.is_finished = False
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, stop_strings, frozenset() if tool_use is None else tool_use.mark_ids)
        self._calls = None if tool_use is None else CallStream(tool_use)
        # Since the last chunk.
        self._num_tokens = 0
        self._pending: list[TextToken] = []

    def push(self, token: Token) -> ReplicaChunk | None:
        """Add a token; returns the text that is final now, and None while there is none."""
        self._num_tokens += 1
        text = self._pass_on(self._stream.push(token.id))
        if token.log_probs is not None:
            top = tuple((self._text_of(token_id), value) for token_id, value in token.log_probs.top)
            self._pending.append(TextToken(self._text_of(token.id), token.log_probs.chosen, top))
        if self._stream.stopped or (self._calls is not None and self._calls.is_complete):
            return self.finish("stop", text)
        return self._chunk(text) if text else None

    def finish(self, reason: FinishReason, text: str = "") -> ReplicaChunk:
        """End the choice; returns its last chunk."""
        is_complete = self._calls is not None and self._calls.is_complete
        text += "" if is_complete else self._pass_on(self._stream.flush())
        self.is_finished = True
        reason = "stop" if self._stream.stopped and reason == "length" else reason
        if self._calls is None:
            return self._chunk(text, reason)
        end = self._calls.finish(is_cut=reason == "length")
        chunk = replace(self._chunk(text + end.text, reason), tool_calls=end.calls)
        return replace(chunk, finish_reason="tool_calls") if end.calls and reason == "stop" else chunk

    def _pass_on(self, text: str) -> str:
        """The part of new text that is content now."""
        return text if self._calls is None else self._calls.push(text)

    def _chunk(self, text: str, reason: FinishReason | None = None) -> ReplicaChunk:
        chunk = ReplicaChunk(text, reason, self._num_tokens, self.index, tuple(self._pending))
        self._num_tokens, self._pending = 0, []
        return chunk

    def _text_of(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


async def generate_choices(engine: Engine, choices: Sequence[Choice]) -> AsyncGenerator[ReplicaChunk, None]:
    """Generate all choices of a request together; yields their chunks as they come.

    Closing it, as a client does that disconnects, cancels what is not generated yet.
    """
    # The engine's callbacks run in its own thread.
    events: asyncio.Queue[tuple[Choice, Token | FinishReason]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def make_request(choice: Choice) -> GenerationRequest:
        def put(event: Token | FinishReason) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (choice, event))

        return GenerationRequest(choice.prompt_ids, choice.sampling, on_token=put, on_finish=put)

    requests = [make_request(choice) for choice in choices]
    for request in requests:
        engine.submit(request)
    try:
        while not all(choice.is_finished for choice in choices):
            choice, event = await events.get()
            if choice.is_finished:
                # A stop string ended it before the engine did.
                continue
            chunk = choice.push(event) if isinstance(event, Token) else choice.finish(event)
            if choice.is_finished:
                requests[choice.index].cancelled.set()
            if choice.is_finished and choice.is_first and chunk is not None:
                chunk = replace(chunk, num_cached_tokens=requests[choice.index].num_cached_tokens)
            if chunk is not None:
                yield chunk
    finally:
        for request in requests:
            request.cancelled.set()
