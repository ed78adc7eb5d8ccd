"""An endpoint whose answers are written in the test. Its playground and its access control are the real ones."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.access_control import AccessControl
from instruct_ray.serving.api_keys import ApiKeys
from instruct_ray.serving.errors import add_error_handlers, overload_response
from instruct_ray.serving.key_limits import KeyLimits
from instruct_ray.serving.playground.routes import add_playground

LAYOUT = "{instruction}\n\n{{input}}: {input}"


@dataclass(frozen=True)
class Script:
    """What a model answers: texts, and seconds to wait between them."""

    parts: tuple[str | float, ...]
    ending: str = "data: [DONE]\n\n"


class ScriptedEndpoint:
    """Serves models, each a script, None for one that is overloaded; a model's version is its key after `/`."""

    def __init__(self, serving: ServingConfig, models: dict[tuple[str, str], Script | None]) -> None:
        self._serving, self._models = serving, models
        self.questions: list[dict[str, Any]] = []
        self.num_cancelled = 0

    def app(self) -> AccessControl:
        api, serving = FastAPI(), self._serving
        paths = add_playground(api, serving)
        add_error_handlers(api)
        api.get("/v1/models")(self.list_models)
        api.post("/v1/chat/completions", response_model=None)(self.chat)
        keys = ApiKeys(serving.api_keys_file)
        return AccessControl(api, keys, KeyLimits(), serving.max_body_bytes, paths, allow_without_key=False)

    @contextmanager
    def run(self) -> Iterator[str]:
        """Serve inside the block; yields the URL of the page."""
        server = uvicorn.Server(uvicorn.Config(self.app(), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()

    async def list_models(self) -> dict[str, Any]:
        return {"data": [{"id": name, "version": version, "layout": LAYOUT} for name, version in self._models]}

    async def chat(self, request: Request) -> Response:
        question = await request.json()
        self.questions.append(question)
        [(version, script)] = [(key[1], one) for key, one in self._models.items() if key[0] == question["model"]]
        if script is None:
            return overload_response()
        name = question["model"].partition("@")[0]
        headers = {"x-model-version": f"{name}/{version}", "x-contract-digest": "c" * 64, "x-data-digest": ""}
        return StreamingResponse(self._stream(script), media_type="text/event-stream", headers=headers)

    async def _stream(self, script: Script) -> AsyncIterator[str]:
        texts = [part for part in script.parts if isinstance(part, str)]
        yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        try:
            for part in script.parts:
                if isinstance(part, str):
                    yield _event({"choices": [{"delta": {"content": part}, "finish_reason": None}]})
                else:
                    await asyncio.sleep(part)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 12, "completion_tokens": len(texts), "total_tokens": 12 + len(texts)}
        yield _event({"choices": [], "usage": usage})
        yield script.ending


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
