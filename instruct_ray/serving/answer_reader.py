"""gateway: reads one answer of a replica, as it is generated or as a whole, within a time limit."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from instruct_ray.serving.answer import ReplicaMessage
from instruct_ray.serving.replica_messages import COMPLETE_REASONS, AnswerStart, ReplicaChunk, RequestError, TokenCounts


class AnswerFailedError(RuntimeError):
    """The engine failed on a request."""


class WholeAnswer:
    """The messages of an answer that a replica sends at once."""

    def __init__(self, response: "DeploymentResponse[list[ReplicaMessage]]") -> None:
        self._response = response
        self._messages: Iterator[ReplicaMessage] | None = None

    async def __anext__(self) -> ReplicaMessage:
        if self._messages is None:
            self._messages = iter(await self._response)
        for message in self._messages:
            return message
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Cancel the answer."""
        self._response.cancel()


class AnswerReader:
    """Reads the messages of one answer."""

    def __init__(self, messages: "DeploymentResponseGenerator[ReplicaMessage] | WholeAnswer", deadline: float) -> None:
        """Read messages up to `deadline`, a time of the event loop."""
        self._messages, self._deadline = messages, deadline
        self._is_finished = False
        self._num_prompt_tokens = self._num_cached_tokens = self._num_completion_tokens = 0

    @property
    def counts(self) -> TokenCounts:
        """The tokens of what has been read."""
        return TokenCounts(self._num_prompt_tokens, self._num_cached_tokens, self._num_completion_tokens)

    async def read_start(self) -> AnswerStart | RequestError:
        """Read the first message.

        Raises:
            TimeoutError: the time is over.
            BackPressureError: the replicas have no room.
            RayActorError: the replica died.
        """
        start = await self._read()
        assert isinstance(start, (AnswerStart, RequestError))
        self._is_finished = isinstance(start, RequestError)
        if isinstance(start, AnswerStart):
            self._num_prompt_tokens, self._num_open = start.num_prompt_tokens, start.num_choices
        return start

    async def read_chunks(self) -> AsyncIterator[ReplicaChunk]:
        """Read the chunks of all choices, to their ends.

        Raises:
            AnswerFailedError: the engine failed.
            TimeoutError: the time is over.
            RayActorError: the replica died.
        """
        while self._num_open:
            try:
                chunk = await self._read()
            except StopAsyncIteration:
                raise AnswerFailedError("the answer ended before all of its choices did") from None
            assert isinstance(chunk, ReplicaChunk)
            self._num_completion_tokens += chunk.num_tokens
            self._num_cached_tokens += chunk.num_cached_tokens
            if chunk.finish_reason is not None:
                if chunk.finish_reason not in COMPLETE_REASONS:
                    raise AnswerFailedError(f"a choice ended with {chunk.finish_reason}")
                self._num_open -= 1
            self._is_finished = not self._num_open
            yield chunk

    def close(self) -> None:
        """Cancel what is not read yet, so that the replica does not go on with it."""
        if not self._is_finished:
            self._is_finished = True
            self._messages.cancel()

    async def _read(self) -> ReplicaMessage:
        async with asyncio.timeout_at(self._deadline):
            return await anext(self._messages)
