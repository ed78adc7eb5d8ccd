"""Tools and errors of the responses API, on the tiny model that is tuned on calls."""

import json
from typing import Any

import openai
import pytest

from tests.serving.calculator import ADD_ARGUMENTS, ADD_QUESTION, TOOL

RESPONSES_TOOL = {"type": "function", **TOOL["function"]}


@pytest.fixture(scope="module")
def calculator_client(calculator_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=calculator_url, api_key="none", max_retries=0)


def test_responses_api_calls_and_answers(calculator_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "calculator", "tools": [RESPONSES_TOOL], "temperature": 0}
    response = calculator_client.responses.create(input="What is 2 + 3?", **request)
    [call] = response.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "calculate", ADD_ARGUMENTS)
    assert (response.status, response.tools[0].name, response.tool_choice) == ("completed", "calculate", "auto")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    answer = calculator_client.responses.create(input=[ADD_QUESTION, call, result], **request)
    assert answer.output_text == "It is 5."
    named = {"type": "function", "name": "calculate"}
    forced = calculator_client.responses.create(input="Hello", tool_choice=named, **request)
    assert [item.type for item in forced.output] == ["function_call"]


def test_errors_of_the_responses_api_name_its_fields(calculator_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="in the input, ") as error:
        calculator_client.responses.create(model="calculator", input="word " * 2000)
    assert (error.value.param, error.value.code) == ("input", "context_length_exceeded")
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as error:
        calculator_client.responses.create(model="calculator", input="x", text=text)
    assert (error.value.param, error.value.code) == ("text.format", "invalid_json_schema")


def test_streamed_responses_have_the_events_of_their_items(calculator_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "calculator", "tools": [RESPONSES_TOOL], "temperature": 0}
    with calculator_client.responses.stream(input="Both: 1 + 4 and 2 + 4?", **request) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert final.output_text == "I add twice."
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.output_index for event in done] == [1, 2]
    assert [json.loads(event.arguments)["a"] for event in done] == [1, 2]
    with calculator_client.responses.stream(input="What is 2 + 3?", **request) as stream:
        kinds = [event.type for event in stream]
    assert "response.content_part.added" not in kinds
    with calculator_client.responses.stream(input="Hello", **request) as stream:
        assert stream.get_final_response().output_text == "Hi, how are you?"


def test_call_that_is_cut_is_left_out_of_a_response(calculator_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "calculator", "tools": [RESPONSES_TOOL], "temperature": 0}
    response = calculator_client.responses.create(input="What is 2 + 3?", max_output_tokens=16, **request)
    assert (response.status, response.output_text) == ("incomplete", "")


def test_responses_report_tokens_of_the_cache(calculator_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "calculator", "instructions": "You reply. " * 16, "max_output_tokens": 1}
    usages = [calculator_client.responses.create(input=f"Say {number}", **request).usage for number in range(3)]
    cached = [usage.input_tokens_details.cached_tokens for usage in usages]
    assert cached[0] == 0 and 64 < cached[2] < usages[2].input_tokens
