"""An engine on vLLM: continuous batching, cached prefixes, tensor parallelism. Model processes are started by vLLM.

It uses vLLM's `AsyncLLM`, on which `vllm serve` and Ray's LLMServer (`ray.serve.llm`) are built, not one of the two:
they render chats, choose sampling defaults and adapters, and know one model for the life of a replica. Here the gateway
renders by the contract, and a replica loads the next version beside its own, checks its answers and changes to it.

Runs in the process of a replica or an engine actor, in a thread of its own.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM

from instruct_ray.base_model.hf_config import context_length, load_hf_config
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError, one_line
from instruct_ray.inference.engine import FinishReason, GenerationRequest
from instruct_ray.inference.grammars import Grammars
from instruct_ray.inference.vllm_requests import check_prompt, read_tokens, to_vllm
from instruct_ray.inference.vllm_settings import LoadableModel, make_engine_args, open_model

logger = logging.getLogger(__name__)
# How often it looks which requests were cancelled, in seconds.
CANCEL_POLL_SECONDS = 0.05
MAX_ERROR_CHARACTERS = 300
FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
T = TypeVar("T")


class VllmEngine:
    """Generates completions for many requests at a time."""

    def __init__(self, model_dir: Path, contract: PromptContract, serving: ServingConfig) -> None:
        """Load a model or an adapter.

        Raises:
            InputError: vLLM can't load it.
        """
        self._stop_token_id = contract.stop_token_id
        # Read now: the folder may be temporary.
        self._tokenizer = load_tokenizer(model_dir)
        self._requests: dict[asyncio.Task[None], GenerationRequest] = {}
        self._request_ids = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        try:
            with open_model(model_dir) as model:
                hf_config = load_hf_config(model.model_dir)
                self._llm = self._call(self._load(model, serving))
                self._adapter = model.adapter
        except InputError:
            self._stop_thread()
            raise
        except Exception as error:  # what is wrong with a model shows in many types of exceptions
            self._stop_thread()
            logger.exception("vLLM can't load %s", model_dir)
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            message = one_line(error, MAX_ERROR_CHARACTERS)
            raise InputError(f"{model_dir}: vLLM can't load it: {message}; the log says more") from error
        self._vocab_size = int(hf_config.get_text_config(decoder=True).vocab_size)
        self._max_context = min(context_length(hf_config), int(self._llm.model_config.max_model_len))
        if self._max_context < context_length(hf_config):
            logger.warning(
                "the context is %d tokens, of the model's %d: more don't fit the memory for keys and values",
                self._max_context,
                context_length(hf_config),
            )
        self._grammars = Grammars(self._tokenizer, contract.stop_token_id, self._vocab_size)
        asyncio.run_coroutine_threadsafe(self._cancel_requests(), self._loop)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion."""
        asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def close(self) -> None:
        """Process the queued requests, then stop."""
        self._call(self._drain())
        self._stop_thread()

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""
        return self._max_context

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can generate."""
        return self._vocab_size

    @property
    def is_alive(self) -> bool:
        """Whether vLLM's processes are there, and requests are processed."""
        return self._thread.is_alive() and not self._llm.errored

    async def _load(self, model: LoadableModel, serving: ServingConfig) -> AsyncLLM:
        llm = AsyncLLM.from_engine_args(make_engine_args(model, self._stop_token_id, serving))
        if model.adapter is not None:
            try:
                # Now: the folder may be temporary.
                await llm.add_lora(model.adapter)
            except BaseException:
                llm.shutdown()
                raise
        return llm

    async def _answer(self, request: GenerationRequest) -> None:
        """Generate a completion. Whatever fails ends this request alone."""
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = request
        reason: FinishReason = "error"
        try:
            reason = await self._generate(request)
        except asyncio.CancelledError:
            reason = "cancelled"
        except Exception as error:
            request.error = self._describe(error)
        finally:
            del self._requests[task]
        request.on_finish(reason)

    async def _generate(self, request: GenerationRequest) -> FinishReason:
        """Pass on the tokens of a completion; returns why it ended.

        Raises:
            ValueError: the prompt or the grammar can't be used.
            VLLMClientError: vLLM refuses the request.
            EngineDeadError: vLLM's process has died.
        """
        sampling = request.sampling
        if request.cancelled.is_set():
            return "cancelled"
        check_prompt(request.prompt_ids, self._vocab_size)
        grammar = None if sampling.grammar is None else self._grammars.start(sampling.grammar)
        outputs = self._llm.generate(
            tokens_input(list(request.prompt_ids)),
            to_vllm(sampling, self._stop_token_id),
            str(next(self._request_ids)),
            lora_request=self._adapter,
        )
        # Closed explicitly, so that a request that ends here frees its place in the batch.
        async with aclosing(outputs):
            async for output in outputs:
                [completion] = output.outputs
                request.num_cached_tokens = output.num_cached_tokens or 0
                for token in read_tokens(completion, sampling.num_top_log_probs):
                    if request.cancelled.is_set():
                        return "cancelled"
                    if grammar is not None:
                        grammar.advance(token.id)
                    if token.id != self._stop_token_id:
                        request.on_token(token)
                reason = completion.finish_reason
        if reason not in FINISH_REASONS:
            raise RuntimeError(f"vLLM ended the completion: {reason}")
        return FINISH_REASONS[reason]

    @staticmethod
    def _describe(error: Exception) -> str:
        """What to say of a request that failed. Errors that are no fault of the request are logged too."""
        if isinstance(error, (ValueError, VLLMClientError)):
            return one_line(error, MAX_ERROR_CHARACTERS)
        logger.error("a completion failed", exc_info=error)
        # vLLM wraps what it did not expect in an error without a text.
        cause = error.__cause__ if not str(error) and isinstance(error.__cause__, Exception) else error
        return f"{type(cause).__name__}: {one_line(cause, MAX_ERROR_CHARACTERS)}"

    async def _cancel_requests(self) -> None:
        """Cancel requests that wait for their next token, or for a place in the batch."""
        while True:
            await asyncio.sleep(CANCEL_POLL_SECONDS)
            for task, request in self._requests.items():
                # Once: a second time would interrupt what the first one does.
                if request.cancelled.is_set() and not task.cancelling():
                    task.cancel()

    async def _drain(self) -> None:
        while self._requests:
            await asyncio.wait(list(self._requests))
        self._llm.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the engine's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
