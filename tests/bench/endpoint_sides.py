"""The sides of bench_endpoint: an engine alone, and servers over HTTP."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.inference.engine import Engine, SamplingParams, generate_all

MAX_NEW_TOKENS = 8
START_SECONDS = 300.0


class EngineSide:
    """The engine alone: prompts are rendered before the time is taken."""

    def __init__(self, engine: Engine, renderer: Renderer, chats: Sequence[list[Message]]) -> None:
        self._engine = engine
        self._prompts = [renderer.prompt(chat) for chat in chats]

    def run(self, num_at_once: int) -> float:
        """Seconds that all requests take."""
        start = time.perf_counter()
        generate_all(self._engine, self._prompts, SamplingParams(MAX_NEW_TOKENS), num_at_once=num_at_once)
        return time.perf_counter() - start


class ServerSide:
    """A server of OpenAI's chat API."""

    def __init__(self, url: str, model: str, chats: Sequence[list[Message]]) -> None:
        self._client = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=64))
        self._model, self._chats = model, chats

    def run(self, num_at_once: int) -> float:
        """Seconds that all requests take."""
        start = time.perf_counter()
        with ThreadPoolExecutor(num_at_once) as pool:
            for response in pool.map(self._ask, self._chats):
                response.raise_for_status()
        return time.perf_counter() - start

    def answers(self) -> list[str]:
        """The answers to all requests, asked one after another."""
        return [self._ask(chat).json()["choices"][0]["message"]["content"] for chat in self._chats]

    def first_token_seconds(self, chat: list[Message]) -> float:
        """Seconds until the first part of a streamed answer."""
        start = time.perf_counter()
        body = self._body(chat) | {"stream": True}
        with self._client.stream("POST", "/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    return time.perf_counter() - start
        raise RuntimeError("the answer has no text")

    def _ask(self, chat: list[Message]) -> httpx.Response:
        return self._client.post("/chat/completions", json=self._body(chat))

    def _body(self, chat: list[Message]) -> dict[str, Any]:
        return {"model": self._model, "messages": chat, "temperature": 0, "max_tokens": MAX_NEW_TOKENS}


@dataclass(frozen=True)
class Peer:
    """Another server of OpenAI's chat API."""

    command: tuple[str, ...]
    """A script beside the interpreter, and its arguments; the model folder and the port are added."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables."""


@contextmanager
def run_peer(peer: Peer, model_dir: Path, port: int, log_file: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run a server for a model folder; yields the base URL of its API.

    `environment` is that of the command: an engine in this process changes its own.

    Raises:
        RuntimeError: it does not start.
    """
    script, *arguments = peer.command
    command = [str(Path(sys.executable).with_name(script)), *arguments, str(model_dir), f"--port={port}"]
    with log_file.open("w") as file:
        process = subprocess.Popen(
            command, env={**environment, **peer.variables}, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_healthy(f"http://localhost:{port}/health", process, log_file)
            yield f"http://localhost:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log_file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"the peer did not start; see {log_file}")
