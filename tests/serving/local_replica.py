"""A replica in this process, with a real renderer and engine: what a gateway is given in place of a Serve handle."""

from collections.abc import AsyncIterator, Generator
from typing import Any

from instruct_ray.serving.answer import AnyRequest, ReplicaMessage, answer
from instruct_ray.serving.loaded_version import LoadedVersion
from instruct_ray.serving.replica_messages import ModelInfo, RequestError, VersionInfo

# A version without a registry.
INFO = VersionInfo(
    name="m",
    version="1",
    contract_digest="0" * 64,
    data_digest=None,
    max_context=512,
    layout="{instruction} {input}",
)


class LocalReplica:
    """Stands for the handle of a replica."""

    def __init__(self, loaded: LoadedVersion, alias: str, max_new_tokens: int) -> None:
        self._loaded, self._max_new_tokens = loaded, max_new_tokens
        self._info = ModelInfo(**loaded.info.model_dump(), alias=alias)
        self.answer = self.info = self
        self.answer_whole = _WholeMethod(self)

    def options(self, stream: bool) -> "LocalReplica":
        return self

    def remote(self, *request: AnyRequest) -> Any:
        return _Answer(self._answer(*request)) if request else self._get_info()

    async def _get_info(self) -> ModelInfo:
        return self._info

    async def _answer(self, request: AnyRequest) -> AsyncIterator[ReplicaMessage]:
        if request.model not in self._info.served_models:
            yield RequestError(404, "no such model", "model", "model_not_found")
            return
        async for message in answer(self._loaded, request, self._max_new_tokens):
            yield message


class _WholeMethod:
    """Stands for the method of a replica that returns all of an answer at once."""

    def __init__(self, replica: LocalReplica) -> None:
        self._replica = replica

    def remote(self, request: AnyRequest) -> "_WholeAnswer":
        return _WholeAnswer(self._replica.remote(request))


class _WholeAnswer:
    """Stands for a response of Ray Serve that is a value."""

    def __init__(self, answer: "_Answer") -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, list[ReplicaMessage]]:
        return self._collect().__await__()

    async def _collect(self) -> list[ReplicaMessage]:
        return [message async for message in self._answer]

    def cancel(self) -> None:
        self._answer.cancel()


class _Answer:
    """Stands for a response generator of Ray Serve."""

    def __init__(self, messages: AsyncIterator[ReplicaMessage]) -> None:
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[ReplicaMessage]:
        return self._messages

    async def __anext__(self) -> ReplicaMessage:
        return await anext(self._messages)

    def cancel(self) -> None:
        """Nothing: an answer that failed is not generated any further."""
