"""A registry version -> a replica that answers chats."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import RegistryConfig, ServingConfig
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import FinishReason, GenerationRequest
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving.schema import ChatRequest, ModelInfo
from instruct_ray.serving.text_stream import TextStream


@dataclass(frozen=True)
class ChatError:
    """Why a chat is not answered."""

    status: int
    message: str
    param: str
    code: str


@dataclass(frozen=True)
class ReplicaChunk:
    """What a replica sends while it answers: first what it serves or why it refuses, then text, last why it ended and
    the token counts."""

    info: ModelInfo | None = None
    refusal: ChatError | None = None
    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """The counts as OpenAI names them."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


class ModelReplica:
    """Loads the version that the alias points to and answers chats with it."""

    def __init__(self, registry: RegistryConfig, serving: ServingConfig) -> None:
        assert registry.uri is not None, "build_app checks it"
        versions = ModelRegistry(registry.uri)
        version = versions.resolve(f"models:/{registry.name}@{registry.alias}")
        # The model lives in memory: a replica that is killed leaves no copy on disk.
        with tempfile.TemporaryDirectory() as target:
            folder = versions.download(version, Path(target))
            self._renderer = load_renderer(folder)
            self._engine = TransformersEngine(folder, self._renderer.contract, serving.max_batch_size)
        self._max_new_tokens = serving.max_new_tokens
        self._info = ModelInfo(
            name=version.name,
            alias=registry.alias,
            version=version.number,
            contract_digest=self._renderer.contract.digest,
            max_context=self._engine.max_context,
        )

    def info(self) -> ModelInfo:
        """What this replica serves."""
        return self._info

    def check_health(self) -> None:
        """Called by Serve; a replica whose engine died is replaced.

        Raises:
            RuntimeError: the engine is not running.
        """
        if not self._engine.is_alive:
            raise RuntimeError("the engine's thread has died")

    async def chat(self, request: ChatRequest) -> AsyncIterator[ReplicaChunk]:
        """Answer piece by piece; a chat that can't be answered yields one piece with its refusal."""
        prompt_ids = self._prompt(request)
        if isinstance(prompt_ids, ChatError):
            yield ReplicaChunk(refusal=prompt_ids)
            return
        yield ReplicaChunk(info=self._info)
        text = TextStream(self._renderer.tokenizer.backend_tokenizer, request.stop_strings)
        events: asyncio.Queue[int | FinishReason] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: int | FinishReason) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        limit = min(self._info.max_context - len(prompt_ids), self._max_new_tokens)
        answer = GenerationRequest(prompt_ids, request.sampling(limit), on_token=put, on_finish=put)
        self._engine.submit(answer)
        num_tokens = 0
        try:
            while isinstance(event := await events.get(), int):
                num_tokens += 1
                piece = text.push(event)
                if piece:
                    yield ReplicaChunk(text=piece)
                if text.stopped:
                    event = "stop"
                    break
        finally:
            # The client left, or a stop string came: the engine need not go on.
            answer.cancelled.set()
        yield ReplicaChunk(
            text=text.flush(), finish_reason=event, prompt_tokens=len(prompt_ids), completion_tokens=num_tokens
        )

    def _prompt(self, request: ChatRequest) -> list[int] | ChatError:
        """The tokens that the answer follows, or why there is none."""
        if request.model not in self._info.ids:
            message = f"no model {request.model!r} here; use one of {', '.join(self._info.ids)}"
            return ChatError(404, message, "model", "model_not_found")
        try:
            prompt_ids = self._renderer.prompt([message.as_message() for message in request.messages])
        except InputError as error:
            return ChatError(400, str(error), "messages", "invalid_messages")
        room, wanted = self._info.max_context - len(prompt_ids), request.num_requested or 1
        if wanted > room:
            message = (
                f"the model reads {self._info.max_context} tokens; the prompt has {len(prompt_ids)}, {wanted} to come"
            )
            return ChatError(400, message, "messages", "context_length_exceeded")
        return prompt_ids
