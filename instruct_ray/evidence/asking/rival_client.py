"""driver: asks one question of an endpoint of OpenAI's chat completions, with bounded retries."""

import os
import time
from collections.abc import Sequence
from typing import Any

import httpx

from instruct_ray.config.evidence import RivalConfig
from instruct_ray.data.rendering.contract import Message
from instruct_ray.errors import InputError, one_line
from instruct_ray.evidence.answers import REFUSED, Answer, FailedRequest, Outcome

NUM_ATTEMPTS = 4
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 1.0, 30.0
TIMEOUT_SECONDS = 120.0
RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
# Nothing of this arm will ever be answered.
FATAL_STATUSES = frozenset({401, 403, 404})
MAX_ERROR_CHARACTERS = 200


class RivalClient:
    """A client of one rival; its methods may be called from several threads."""

    def __init__(self, rival: RivalConfig) -> None:
        """Read the API key.

        Raises:
            InputError: the environment variable is not set.
        """
        self._rival = rival
        headers = {}
        if rival.api_key_env is not None:
            key = os.environ.get(rival.api_key_env)
            if not key:
                raise InputError(
                    f"evidence.arms: {rival.name}: the environment variable {rival.api_key_env} is not set; set it to "
                    "the API key, or remove api_key_env"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._url = f"{rival.base_url.rstrip('/')}/chat/completions"
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS)

    def ask(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[Outcome, float]:
        """Ask a question by greedy decoding.

        Returns:
            The answer or the failure, and the seconds that the last attempt took.

        Raises:
            InputError: the endpoint rejects the API key, or has no such model.
        """
        body = {"model": self._rival.model, "messages": list(messages), "temperature": 0, "max_tokens": max_new_tokens}
        error, wait = "", FIRST_WAIT_SECONDS
        for attempt in range(NUM_ATTEMPTS):
            if attempt:
                time.sleep(wait)
            start = time.perf_counter()
            try:
                response = self._client.post(self._url, json=body)
            except httpx.HTTPError as problem:
                error, wait = f"{type(problem).__name__}: {one_line(problem, MAX_ERROR_CHARACTERS)}", wait * 2
                continue
            seconds = time.perf_counter() - start
            if response.status_code not in RETRIED_STATUSES:
                return self._read(response), seconds
            error, wait = _describe(response), _wait_of(response, wait * 2)
        return FailedRequest(f"{error} ({NUM_ATTEMPTS} attempts)"), time.perf_counter() - start

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _read(self, response: httpx.Response) -> Outcome:
        if response.status_code in FATAL_STATUSES:
            raise InputError(f"evidence.arms: {self._rival.name}: {_describe(response)}")
        try:
            values = response.json()
            if response.status_code == 400 and _is_filtered(values):
                return Answer("", REFUSED, None, None)
            if response.status_code != 200:
                return FailedRequest(_describe(response))
            return _read_answer(values)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return FailedRequest(f"not an answer in OpenAI's format: {_describe(response)}")


def _read_answer(values: Any) -> Outcome:
    choice, usage = values["choices"][0], values.get("usage") or {}
    message, reason = choice["message"], choice.get("finish_reason") or "stop"
    is_refused = reason == REFUSED or bool(message.get("refusal"))
    # An emoji that the length limit cut in two is half a character, which can't be written to a file.
    text = str(message.get("content") or "").encode("utf-8", "replace").decode()
    return Answer(
        text="" if is_refused else text,
        finish_reason=REFUSED if is_refused else str(reason),
        prompt_tokens=_read_count(usage.get("prompt_tokens")),
        completion_tokens=_read_count(usage.get("completion_tokens")),
    )


def _read_count(value: Any) -> int | None:
    return None if value is None else int(value)


def _is_filtered(values: Any) -> bool:
    """Whether a 400 says that a content filter refused the question: by code, as Azure and others do."""
    error = values.get("error") or {}
    codes = [error.get("code"), error.get("type"), (error.get("innererror") or {}).get("code")]
    return any("content_filter" in str(code) or "content_policy" in str(code) for code in codes)


def _wait_of(response: httpx.Response, wait: float) -> float:
    """The seconds to wait that the endpoint asks for, or `wait`, at most MAX_WAIT_SECONDS."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked) if asked.isdecimal() else wait, MAX_WAIT_SECONDS)


def _describe(response: httpx.Response) -> str:
    return f"HTTP {response.status_code}: {' '.join(response.text.split())[:MAX_ERROR_CHARACTERS]}"
