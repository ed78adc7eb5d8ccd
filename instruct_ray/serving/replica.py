"""A Serve replica: answers requests with the versions that it serves."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from instruct_ray.background import PeriodicThread
from instruct_ray.config.schema import RegistryConfig
from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.answer import AnyRequest, ReplicaMessage, answer
from instruct_ray.serving.peer_version import find_peer_version
from instruct_ray.serving.replica_messages import ModelInfo
from instruct_ray.serving.replica_metrics import EXPORT_SECONDS, ReplicaMetrics
from instruct_ray.serving.request_timer import RequestTimer
from instruct_ray.serving.served_models import ModelNotServedError, ServedModels


class ModelReplica:
    """Answers requests; `build_app` makes a Serve deployment of this class."""

    def __init__(self, registry: RegistryConfig, serving: ServingConfig) -> None:
        follows_canaries = serving.canary is not None and serving.follow_seconds is not None
        self._models = ServedModels(registry, serving, find_peer_version(registry.name) if follows_canaries else None)
        self._max_new_tokens, self._max_seconds = serving.max_new_tokens, serving.max_seconds
        # Until the process ends.
        PeriodicThread("metrics", ReplicaMetrics(self._models).set_gauges, EXPORT_SECONDS).__enter__()

    def info(self) -> ModelInfo:
        """Return which versions this replica serves."""
        return self._models.info

    def check_health(self) -> None:
        """Report to Serve whether this replica works; Serve replaces it if not.

        Raises:
            RuntimeError: the thread of an engine has died.
        """
        if not self._models.is_alive:
            raise RuntimeError("the engine's thread has died")

    async def answer(self, request: AnyRequest) -> AsyncIterator[ReplicaMessage]:
        """Answer a request: yields a RequestError and ends, or an AnswerStart and then the chunks of all choices."""
        try:
            # The whole answer comes from the version that it began on.
            with self._models.hold(request.model) as loaded, self._timed(request, loaded.info.version) as timer:
                # Closed explicitly, so that a client that disconnects cancels its generation immediately.
                async with aclosing(answer(loaded, request, self._max_new_tokens)) as messages:
                    async for message in messages:
                        timer.see(message)
                        yield message
        except ModelNotServedError as not_served:
            yield not_served.error

    async def answer_whole(self, request: AnyRequest) -> list[ReplicaMessage]:
        """Answer a request with all messages of `answer` at once, which costs less than to send one after the other."""
        return [message async for message in self.answer(request)]

    @contextmanager
    def _timed(self, request: AnyRequest, version: str) -> Iterator[RequestTimer]:
        timer = RequestTimer(self._max_seconds)
        try:
            yield timer
        except Exception:
            timer.fail()
            raise
        finally:
            if (is_failed := timer.is_failed) is not None:
                self._models.record(request.model, version, timer.seconds, is_failed=is_failed)
