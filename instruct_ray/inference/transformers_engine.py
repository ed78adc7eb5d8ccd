"""An engine on transformers, which runs wherever transformers runs: batches requests, in a thread of its own.

Requests join a running batch where the model allows it (`ContinuousBatch`); otherwise a batch is answered as a whole
(`StaticBatch`). The beginnings of prompts that were computed before are kept. The model may be the base of adapters,
which requests choose.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from instruct_ray.base_model.hf_config import context_length
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import one_line
from instruct_ray.inference.adapters import Adapter, AdapterSwitch, find_row_layers, load_adapter
from instruct_ray.inference.batch_rules import BatchRules
from instruct_ray.inference.continuous_batch import ContinuousBatch
from instruct_ray.inference.engine import GenerationRequest
from instruct_ray.inference.grammars import Grammars
from instruct_ray.inference.loading import load_for_inference
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.row_sampler import RowSampler
from instruct_ray.inference.running_batch import BatchRow, ModelVariant
from instruct_ray.inference.static_batch import StaticBatch, take_while_it_fits

logger = logging.getLogger(__name__)
# How long the first request of a batch waits for more requests, in seconds.
BATCH_WAIT_SECONDS = 0.005
MAX_ERROR_CHARACTERS = 300


class TransformersEngine:
    """Generates completions for many requests at a time."""

    def __init__(
        self,
        model_dir: Path,
        contract: PromptContract,
        max_batch_size: int,
        prefix_cache_tokens: int,
        *,
        takes_adapters: bool = False,
    ) -> None:
        self._model = load_for_inference(model_dir)
        self._vocab_size = int(self._model.config.get_text_config(decoder=True).vocab_size)
        # Read now: the folder may be temporary.
        self._grammars = Grammars(load_tokenizer(model_dir), contract.stop_token_id, self._vocab_size)
        self._rules = BatchRules.from_model(self._model)
        for notice in self._rules.notices:
            logger.warning(notice)
        self._max_batch_size = max_batch_size
        self._prefix_cache_tokens, self._switch = prefix_cache_tokens, AdapterSwitch()
        self._row_layers = find_row_layers(self._model) if takes_adapters else frozenset[str]()
        # By the name of the adapter; None is the model itself.
        self._variants: dict[str | None, ModelVariant] = {None: self._make_variant(None)}
        self._batch: ContinuousBatch | StaticBatch
        if self._rules.allows_joining:
            self._batch = ContinuousBatch(self._model, contract.stop_token_id, contract.pad_token_id, self._switch)
        else:
            self._batch = StaticBatch(self._model, contract, self._rules, self._switch)
        self._queue: list[GenerationRequest] = []
        self._closing = False
        # Why the engine can compute nothing any more.
        self._failure: str | None = None
        # Guards the queue, whether it is closing or has failed, and the variants.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion. It ends at once if the engine has failed."""
        with self._changed:
            failure = self._failure if self._thread.is_alive() else self._failure or "the engine has stopped"
            if failure is None:
                self._queue.append(request)
                self._changed.notify_all()
        if failure is not None:
            _end_with_error(request, failure)

    def close(self) -> None:
        """Process the queued requests, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def add_adapter(self, name: str, adapter_dir: Path) -> None:
        """Load an adapter. The folder may be temporary.

        Raises:
            UnsupportedAdapterError: it can't be computed beside others.
        """
        adapter = load_adapter(adapter_dir, self._model, self._switch, self._row_layers)
        with self._changed:
            self._variants[name] = self._make_variant(adapter)

    def remove_adapter(self, name: str) -> None:
        """Begin the queued requests for an adapter, then forget it."""
        with self._changed:
            # A thread that has died begins nothing any more.
            while self._thread.is_alive() and any(request.adapter == name for request in self._queue):
                self._changed.wait(timeout=1)
            # Rows that are being answered with it keep it until they end.
            del self._variants[name]

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""
        return context_length(self._model.config)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can generate."""
        return self._vocab_size

    @property
    def is_alive(self) -> bool:
        """Whether the engine still processes requests."""
        return self._thread.is_alive()

    def _run(self) -> None:
        batch = self._batch
        while (requests := self._take_requests()) or batch.rows:
            rows = [row for taken in requests if (row := self._try_to_make_row(*taken)) is not None]
            running = [*batch.rows, *rows]
            try:
                if rows:
                    batch.add(rows)
                if batch.rows:
                    batch.step()
            except torch.AcceleratorError as error:
                self._fail(running, _describe(error))
                return
            except Exception as error:  # any other failure ends the requests that it concerns, never the engine
                if isinstance(error, torch.OutOfMemoryError):
                    for variant in self._variants.copy().values():
                        variant.prefixes.clear()
                logger.exception("a batch of %d requests failed", len(running))
                going_on = set(batch.rows)
                for row in running:
                    if row not in going_on:
                        row.finish("error", _describe(error))

    def _fail(self, running: Sequence[BatchRow], reason: str) -> None:
        """End all requests: after an error of a GPU's kernel, such as a failed assertion, the process can't use it."""
        logger.critical("the GPU failed, and with it this engine: %s", reason)
        with self._changed:
            self._failure, queued, self._queue = reason, self._queue, []
            self._changed.notify_all()
        for row in running:
            row.finish("error", reason)
        for request in queued:
            _end_with_error(request, reason)

    def _make_variant(self, adapter: Adapter | None) -> ModelVariant:
        return ModelVariant(adapter, PrefixCache(self._prefix_cache_tokens))

    def _take_requests(self) -> list[tuple[GenerationRequest, ModelVariant | None]]:
        """Take the next requests from the queue, each with what computes it; None if it was removed.

        Waits for them if none is being answered; empty if none comes.
        """
        with self._changed:
            num_free = self._max_batch_size - len(self._batch.rows)
            if not self._batch.rows:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: self._closing, timeout=BATCH_WAIT_SECONDS)
            if self._rules.allows_joining or not self._queue:
                taken = self._queue[:num_free]
            else:
                compatible = [request for request in self._queue if self._rules.allow(self._queue[0], request)]
                taken = take_while_it_fits(compatible[:num_free], self.max_context)
            # By identity: two equal requests are still two requests.
            self._queue = [request for request in self._queue if not any(request is one for one in taken)]
            self._changed.notify_all()
            return [(request, self._variants.get(request.adapter)) for request in taken]

    def _try_to_make_row(self, request: GenerationRequest, variant: ModelVariant | None) -> BatchRow | None:
        try:
            return self._make_row(request, variant)
        except Exception as error:  # ends this request alone
            logger.exception("a request can't be begun")
            _end_with_error(request, _describe(error))
            return None

    def _make_row(self, request: GenerationRequest, variant: ModelVariant | None) -> BatchRow | None:
        """The request with its sampler; None if it ends here: it was cancelled, or it can't be answered."""
        sampling = request.sampling
        if request.cancelled.is_set():
            request.on_finish("cancelled")
            return None
        if variant is None:
            _end_with_error(request, f"the engine has no adapter {request.adapter}")
            return None
        # On a GPU an unknown token would end all requests, see `_fail`.
        if not all(0 <= token_id < self._vocab_size for token_id in request.prompt_ids):
            _end_with_error(request, f"the prompt has token ids that the model lacks; it has {self._vocab_size}")
            return None
        try:
            grammar = None if sampling.grammar is None else self._grammars.start(sampling.grammar)
        except ValueError as error:
            _end_with_error(request, one_line(error, MAX_ERROR_CHARACTERS))
            return None
        return BatchRow(request, RowSampler(sampling, grammar, self._model.device), variant)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, MAX_ERROR_CHARACTERS)}"


def _end_with_error(request: GenerationRequest, reason: str) -> None:
    request.error = reason
    request.on_finish("error")
