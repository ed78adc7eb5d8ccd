"""One engine for several adapters of a base model, and for the base model itself: each user sees an own engine."""

from collections.abc import Callable
from pathlib import Path

from instruct_ray.inference.engine import AdapterEngine, GenerationRequest


class SharedEngine:
    """Counts who uses an engine, and closes it after the last one."""

    def __init__(self, engine: AdapterEngine, on_close: Callable[[], None]) -> None:
        """Share an engine.

        Args:
            engine: the engine.
            on_close: called after the engine was closed, to drop what refers to it and so its memory.
        """
        self._engine, self._on_close, self._num_users = engine, on_close, 0

    def open_adapter(self, name: str, adapter_dir: Path) -> "AdapterView":
        """Load an adapter; closing its view removes it.

        Raises:
            UnsupportedAdapterError: the engine can't compute it.
        """
        self._num_users += 1
        try:
            self._engine.add_adapter(name, adapter_dir)
        except BaseException:
            self._leave()
            raise
        return AdapterView(self._engine, name, lambda: self._remove(name))

    def open_base(self) -> "AdapterView":
        """The base model without an adapter."""
        self._num_users += 1
        return AdapterView(self._engine, None, self._leave)

    def _remove(self, name: str) -> None:
        self._engine.remove_adapter(name)
        self._leave()

    def _leave(self) -> None:
        self._num_users -= 1
        if not self._num_users:
            self._engine.close()
            self._on_close()


class AdapterView:
    """An engine whose requests are all answered with one adapter of a shared engine."""

    def __init__(self, engine: AdapterEngine, adapter: str | None, close: Callable[[], None]) -> None:
        self._engine, self._adapter, self._close = engine, adapter, close

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""
        return self._engine.max_context

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can generate."""
        return self._engine.vocab_size

    @property
    def is_alive(self) -> bool:
        """Whether the engine still processes requests."""
        return self._engine.is_alive

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion."""
        request.adapter = self._adapter
        self._engine.submit(request)

    def close(self) -> None:
        """Process the queued requests, then remove the adapter; the engine stops with its last view."""
        self._close()
