"""The endpoint under load: very many requests at once."""

import asyncio
import time
from collections import Counter

import httpx2
import openai

from instruct_ray.config.schema import Config
from tests.serving.endpoint import KEY, URL, client
from tests.serving.load import Outcome, make_request, read_body, read_events, send

PATH = f"{URL}/chat/completions"
NUM_REQUESTS = 1000


# Over 20 seconds: an endpoint starts.
def test_each_of_a_thousand_requests_at_once_is_answered_or_refused(
    endpoint: openai.OpenAI, endpoint_config: Config
) -> None:
    request = make_request(endpoint_config, 8)
    expected = client.post(PATH, json=request).json()["choices"][0]["message"]["content"]

    async def ask(http: httpx2.AsyncClient, number: int) -> Outcome:
        body = request | {"stream": number % 2 == 0}
        async with http.stream("POST", PATH, json=body) as response:
            if response.status_code == 200 and body["stream"]:
                return read_events(response, [line async for line in response.aiter_lines()], expected)
            await response.aread()
            return read_body(response, expected)

    async def ask_all() -> list[Outcome]:
        limits, headers = httpx2.Limits(max_connections=None), {"Authorization": f"Bearer {KEY}"}
        async with httpx2.AsyncClient(limits=limits, headers=headers, timeout=240) as http:
            return await asyncio.gather(*(ask(http, number) for number in range(NUM_REQUESTS)))

    started = time.monotonic()
    outcomes = Counter(asyncio.run(ask_all()))
    print(f"{NUM_REQUESTS} requests at once: {dict(outcomes)} in {time.monotonic() - started:.1f} s")
    assert outcomes.keys() <= {"complete", "refused"} and outcomes["complete"] >= 8
    assert send(client, PATH, request, expected) == "complete"
