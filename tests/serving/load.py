"""Clients that load an endpoint: each answer is complete, refused, or fails visibly."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import psutil

from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.run.folder import RunFolder

# How an answer ended. `silent` is the one that must not be: text that was cut looks complete.
Outcome = Literal["complete", "other_text", "refused", "no_retry_after", "unavailable", "failed", "broken", "silent"]


@dataclass
class Outcomes:
    """How many answers ended how, of complete bodies and of streams."""

    bodies: Counter[Outcome] = field(default_factory=Counter)
    streams: Counter[Outcome] = field(default_factory=Counter)

    def count(self, outcome: Outcome, *, stream: bool) -> None:
        (self.streams if stream else self.bodies)[outcome] += 1


def make_request(config: Config, num_tokens: int) -> dict[str, Any]:
    """A request whose answer never stops before its limit."""
    contract = PromptContract.load(RunFolder.from_config(config).contract_file)
    messages, bias = [{"role": "user", "content": "hello"}], {str(contract.stop_token_id): -100}
    return {"model": "tiny", "messages": messages, "max_tokens": num_tokens, "logit_bias": bias, "temperature": 0}


def read_body(response: httpx2.Response, expected: str | None) -> Outcome:
    """How a complete body ended; any text is right if none is expected."""
    if response.status_code != 200:
        return _read_refusal(response)
    text = response.json()["choices"][0]["message"]["content"]
    return "complete" if expected in (None, text) else "other_text"


def read_events(response: httpx2.Response, lines: list[str], expected: str | None) -> Outcome:
    """How a stream ended whose body ended as HTTP asks for."""
    if response.status_code != 200:
        return _read_refusal(response)
    events = [line.removeprefix("data: ") for line in lines if line]
    if events[-1:] != ["[DONE]"]:
        return "failed" if events and "error" in json.loads(events[-1]) else "silent"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return "complete" if expected in (None, text) else "other_text"


def find_serve_processes(name: str) -> list[psutil.Process]:
    """The processes of this test's own Ray cluster that run a Serve actor of a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def send(client: httpx2.Client, url: str, request: dict[str, Any], expected: str | None) -> Outcome:
    """Send a request, streamed if it says so, and return how its answer ended."""
    try:
        if not request.get("stream"):
            return read_body(client.post(url, json=request), expected)
        with client.stream("POST", url, json=request) as response:
            if response.status_code != 200:
                response.read()
            return read_events(response, list(response.iter_lines()), expected)
    except (httpx2.RemoteProtocolError, httpx2.ReadError):
        return "broken"


def _read_refusal(response: httpx2.Response) -> Outcome:
    if response.status_code == 429:
        return "refused" if int(response.headers.get("retry-after", 0)) > 0 else "no_retry_after"
    return "unavailable" if response.status_code == 503 else "failed"
