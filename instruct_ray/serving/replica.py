"""A Serve replica: loads a registered version into an engine and answers chats with it."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import RegistryConfig, ServingConfig
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import FinishReason, GenerationRequest
from instruct_ray.inference.engines import create_engine
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving.schema import ChatRequest, ModelInfo
from instruct_ray.serving.text_stream import TextStream


@dataclass(frozen=True)
class ChatError:
    """The error response to a chat that can't be answered."""

    status: int
    message: str
    param: str
    code: str


@dataclass(frozen=True)
class ReplicaChunk:
    """A part of the completion's text; the last chunk also has the finish reason and the token counts."""

    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """The token counts as an OpenAI `usage` object."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


class ModelReplica:
    """Answers chats with the version that the alias points to when the replica starts."""

    def __init__(self, registry: RegistryConfig, serving: ServingConfig) -> None:
        assert registry.uri is not None, "build_app checks it"
        models = ModelRegistry(registry.uri)
        version = models.resolve(f"models:/{registry.name}@{registry.alias}")
        # Temporary, because the model lives in memory: a replica that is killed leaves no copy on the disk.
        with tempfile.TemporaryDirectory() as temporary_dir:
            model_dir = models.download(version, Path(temporary_dir))
            self._renderer = load_renderer(model_dir)
            self._engine = create_engine(model_dir, self._renderer.contract, serving)
        self._max_new_tokens = serving.max_new_tokens
        self._info = ModelInfo(
            name=version.name,
            alias=registry.alias,
            version=version.number,
            contract_digest=self._renderer.contract.digest,
            max_context=self._engine.max_context,
        )

    def info(self) -> ModelInfo:
        """Return which version this replica serves."""
        return self._info

    def check_health(self) -> None:
        """Report to Serve whether this replica works; Serve replaces it if not.

        Raises:
            RuntimeError: the engine's thread has died.
        """
        if not self._engine.is_alive:
            raise RuntimeError("the engine's thread has died")

    async def chat(self, request: ChatRequest) -> AsyncIterator[ModelInfo | ChatError | ReplicaChunk]:
        """Answer a chat: yields a ChatError and ends, or yields the ModelInfo and then the chunks of the completion."""
        prompt_ids = self._render(request)
        if isinstance(prompt_ids, ChatError):
            yield prompt_ids
            return
        yield self._info
        # Closed explicitly, so that a client that disconnects cancels its generation immediately.
        async with aclosing(self._generate(request, prompt_ids)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _generate(self, request: ChatRequest, prompt_ids: list[int]) -> AsyncGenerator[ReplicaChunk, None]:
        # The engine's callbacks run in its own thread and put token ids, then the finish reason, into the queue.
        events: asyncio.Queue[int | FinishReason] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: int | FinishReason) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        limit = min(self._info.max_context - len(prompt_ids), self._max_new_tokens)
        generation = GenerationRequest(prompt_ids, request.sampling_params(limit), on_token=put, on_finish=put)
        self._engine.submit(generation)
        stream = TextStream(self._renderer.tokenizer.backend_tokenizer, request.stop_strings)
        num_tokens = 0
        try:
            while isinstance(event := await events.get(), int):
                num_tokens += 1
                text = stream.push(event)
                if text:
                    yield ReplicaChunk(text=text)
                if stream.stopped:
                    event = "stop"
                    break
        finally:
            # Also reached when the client disconnects: the engine needs no further tokens for this request.
            generation.cancelled.set()
        yield ReplicaChunk(stream.flush(), event, prompt_tokens=len(prompt_ids), completion_tokens=num_tokens)

    def _render(self, request: ChatRequest) -> list[int] | ChatError:
        """Return the prompt token ids of a chat, or why it can't be answered."""
        if request.model not in self._info.served_names:
            message = f"no model {request.model!r} here; use one of {', '.join(self._info.served_names)}"
            return ChatError(404, message, "model", "model_not_found")
        try:
            prompt_ids = self._renderer.prompt([message.to_message() for message in request.messages])
        except InputError as error:
            return ChatError(400, str(error), "messages", "invalid_messages")
        # At least one token, if the client set no limit.
        num_prompt, num_completion = len(prompt_ids), request.max_tokens_requested or 1
        if num_prompt + num_completion > self._info.max_context:
            message = (
                f"This model's maximum context length is {self._info.max_context} tokens. However, you requested "
                f"{num_prompt + num_completion} tokens ({num_prompt} in the messages, {num_completion} in the "
                "completion). Please reduce the length of the messages or completion."
            )
            return ChatError(400, message, "messages", "context_length_exceeded")
        return prompt_ids
