"""A gateway in this process, asked over HTTP, whose replica is a fake that fails as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import httpx2

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.gateway import Gateway
from instruct_ray.serving.replica_messages import AnswerStart, ModelInfo, ReplicaChunk

INFO = ModelInfo(
    name="m",
    alias="champion",
    version="1",
    contract_digest="0" * 64,
    data_digest=None,
    max_context=64,
    layout="{instruction} {input}",
)
START = AnswerStart(INFO, num_prompt_tokens=3, num_choices=1)
HI = ReplicaChunk("Hi", num_tokens=1)
END = ReplicaChunk(finish_reason="stop", num_tokens=1)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
FOREVER = object()


class FakeReplica:
    """Stands for the handle of a replica: each answer yields the next of some lists, and raises their exceptions."""

    def __init__(self, answers: list[list[Any]], info: Any = INFO) -> None:
        self._answers = iter(answers)
        self.answer, self.answer_whole = self, FakeWholeMethod(self)
        self.info = FakeMethod(info)
        self.num_cancelled = 0

    def options(self, stream: bool) -> "FakeReplica":
        return self

    def remote(self, request: object) -> "FakeAnswer":
        return FakeAnswer(self, next(self._answers))


class FakeWholeMethod:
    """Stands for the method of a replica that returns all of an answer at once."""

    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica

    def remote(self, request: object) -> "FakeWholeAnswer":
        return FakeWholeAnswer(self._replica.remote(request))


class FakeMethod:
    """Stands for a method of a replica that returns a value, raises it if it is an exception, or never ends."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.num_calls = 0

    async def remote(self) -> Any:
        self.num_calls += 1
        if self.value is FOREVER:
            await asyncio.sleep(60)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeAnswer:
    """Stands for a response generator of Ray Serve."""

    def __init__(self, replica: FakeReplica, items: list[Any]) -> None:
        self._replica, self._items = replica, iter(items)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if item is FOREVER:
            await asyncio.sleep(60)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self._replica.num_cancelled += 1


class FakeWholeAnswer:
    """Stands for a response of Ray Serve that is a value."""

    def __init__(self, answer: FakeAnswer) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._collect().__await__()

    async def _collect(self) -> list[Any]:
        return [item async for item in self._answer]

    def cancel(self) -> None:
        self._answer.cancel()


def ask(
    replica: FakeReplica,
    *requests: dict[str, Any],
    serving: dict[str, Any] | None = None,
    client: str = "127.0.0.1",
    between: Callable[[], None] = lambda: None,
) -> list[httpx2.Response]:
    """Send requests to a gateway, one after the other; each is the arguments of httpx."""

    async def run() -> list[httpx2.Response]:
        handle: Any = replica
        gateway = Gateway(handle, ServingConfig.model_validate(serving or {}))
        transport = httpx2.ASGITransport(
            gateway.__serve_build_asgi_app__(), raise_app_exceptions=False, client=(client, 1)
        )
        responses = []
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for request in requests:
                responses.append(await http.request(**{"method": "POST", "url": PATH} | request))
                between()
        return responses

    return asyncio.run(run())


def chat(answers: list[list[Any]], *, stream: bool = False, **options: Any) -> httpx2.Response:
    [response] = ask(FakeReplica(answers), {"json": CHAT | {"stream": stream}}, **options)
    return response


def events(response: httpx2.Response) -> list[Any]:
    """The events of a stream, as JSON where they are JSON."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def with_key(key: str) -> dict[str, Any]:
    return {"json": CHAT, "headers": {"Authorization": f"Bearer {key}"}}
