"""Validation of requests of the completions and the responses API."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from instruct_ray.serving import completion_request, responses_request
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.responses_request import ResponsesChat, ResponsesRequest

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "a"}
RESPONSES: dict[str, Any] = {"model": "m", "input": "a"}
MINIMAL: list[tuple[type[BaseModel], dict[str, Any], dict[str, Any]]] = [
    (CompletionRequest, COMPLETION, completion_request.UNUSED_REQUEST_FIELDS),
    (ResponsesRequest, RESPONSES, responses_request.UNUSED_REQUEST_FIELDS),
]


@pytest.mark.parametrize(("request_type", "minimal", "unused"), MINIMAL)
def test_null_and_values_that_ask_for_nothing_are_accepted(
    request_type: type[BaseModel], minimal: dict[str, Any], unused: dict[str, Any]
) -> None:
    plain = request_type.model_validate(minimal)
    optional = [name for name, field in request_type.model_fields.items() if not field.is_required()]
    for name in (*optional, *unused):
        assert request_type.model_validate(minimal | {name: None}) == plain, name
    for name, values in unused.items():
        for value in values:
            assert request_type.model_validate(minimal | {name: value}) == plain, (name, value)


@pytest.mark.parametrize(("request_type", "minimal", "unused"), MINIMAL)
def test_other_values_of_these_fields_are_refused(
    request_type: type[BaseModel], minimal: dict[str, Any], unused: dict[str, Any]
) -> None:
    for name in (*unused, "template", "chat_template"):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            request_type.model_validate(minimal | {name: "something else"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": [1, 2]}, "token ids could be control tokens"),
        ({"prompt": [[1, 2]]}, "token ids could be control tokens"),
        ({"prompt": ""}, "at least 1 character"),
        ({"prompt": []}, "at least 1 item"),
        ({"prompt": ["a"] * 33}, "at most 32 items"),
        ({"prompt": ["a"] * 5, "n": 8}, "prompts times n may be at most 32"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"logprobs": 6}, "less than or equal to 5"),
        ({"echo": True}, "not permitted"),
        ({"stop": ["a"] * 5}, "at most 4 strings"),
    ],
)
def test_wrong_completion_requests_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompletionRequest.model_validate(COMPLETION | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "required"},
        {"background": True},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
        {"input": []},
        {"text": {"format": {"type": "json_schema", "name": "a"}}},
        {"max_output_tokens": 0},
        {"instructions": "a", "input": [{"role": "user", "content": "a"}] * 256},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a" * 600_000}] * 2}]},
        {"input": [{"role": "user", "content": "a" * 600_000}] * 2},
        {"instructions": "a" * 600_000, "input": "a" * 600_000},
        {
            "input": [
                *({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"} for _ in range(129)),
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ]
        },
    ],
)
def test_what_the_responses_api_can_not_do_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResponsesRequest.model_validate(RESPONSES | fields)


def test_responses_request_becomes_a_chat() -> None:
    schema = {"type": "object"}
    request = ResponsesRequest.model_validate(
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]},
                {"role": "developer", "content": "d"},
            ],
            "max_output_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.5,
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}},
        }
    )  # fmt: skip
    assert request.to_chat() == ResponsesChat.model_validate(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "ab"},
                {"role": "assistant", "content": "c"},
                {"role": "developer", "content": "d"},
            ],
            "max_completion_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.5,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        }
    )
