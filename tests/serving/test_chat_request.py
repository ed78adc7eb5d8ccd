"""Validation of chat requests."""

from typing import Any

import pytest
from pydantic import ValidationError

from instruct_ray.inference.engine import SamplingParams
from instruct_ray.serving.chat_request import UNUSED_REQUEST_FIELDS, ChatRequest

MINIMAL: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_text_parts_are_joined_and_developer_becomes_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = ChatRequest.model_validate(MINIMAL | {"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].to_message() == {"role": "system", "content": "ab"}


def test_both_names_of_the_token_limit_are_accepted() -> None:
    assert ChatRequest.model_validate(MINIMAL | {"max_completion_tokens": 5}).sampling_params(10).max_new_tokens == 5
    assert ChatRequest.model_validate(MINIMAL | {"max_tokens": 50}).sampling_params(10).max_new_tokens == 10
    assert ChatRequest.model_validate(MINIMAL).sampling_params(10).max_new_tokens == 10


NULLABLE_FIELDS = [
    *(name for name, field in ChatRequest.model_fields.items() if not field.is_required()),
    *UNUSED_REQUEST_FIELDS,
]


@pytest.mark.parametrize("name", NULLABLE_FIELDS)
def test_null_is_a_field_that_is_not_set(name: str) -> None:
    assert ChatRequest.model_validate(MINIMAL | {name: None}) == ChatRequest.model_validate(MINIMAL)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"store": False},
        {"metadata": {}},
        {"tool_choice": "none"},
        {"logprobs": False, "top_logprobs": 0},
        {"stream_options": {"include_usage": None, "include_obfuscation": False}},
    ],
)
def test_value_that_asks_for_nothing_is_accepted(fields: dict[str, object]) -> None:
    request = ChatRequest.model_validate(MINIMAL | fields)
    assert request.sampling_params(10) == ChatRequest.model_validate(MINIMAL).sampling_params(10)


@pytest.mark.parametrize(
    "fields",
    [
        {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None, "name": None},
        {"tool_calls": [], "reasoning_content": None},
    ],
)
def test_answer_that_a_client_sends_back_is_an_assistant_message(fields: dict[str, object]) -> None:
    answer = {"role": "assistant", "content": "High", **fields}
    request = ChatRequest.model_validate(MINIMAL | {"messages": [*MINIMAL["messages"], answer, *MINIMAL["messages"]]})
    assert request.messages[1].to_message() == {"role": "assistant", "content": "High"}


def test_settings_of_choices() -> None:
    fields = {
        "n": 2, "seed": 5, "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"7": -100, "8": 2.5},
        "logprobs": True, "top_logprobs": 3, "temperature": 0.5, "top_p": 0.9,
    }  # fmt: skip
    request = ChatRequest.model_validate(MINIMAL | fields)
    first, second = (request.sampling_params(10, choice) for choice in range(request.n))
    assert first == SamplingParams(
        10, 0.5, 0.9, 5, 1.0, -0.5, logit_bias=((7, -100.0), (8, 2.5)), num_top_log_probs=3
    )  # fmt: skip
    assert second.seed == 6
    assert ChatRequest.model_validate(MINIMAL | {"logprobs": True}).sampling_params(1).num_top_log_probs == 0


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}, "description": "b"}}, {}),
    ],
)
def test_schema_of_the_answer(response_format: dict[str, object], schema: dict[str, object] | None) -> None:
    request = ChatRequest.model_validate(MINIMAL | {"response_format": response_format})
    assert request.response_format.schema_of_answer == schema


def test_tiny_temperature_is_greedy() -> None:
    for temperature in (0, 1e-45, 1e-38, 1e-9):
        assert ChatRequest.model_validate(MINIMAL | {"temperature": temperature}).sampling_params(10).is_greedy
    assert not ChatRequest.model_validate(MINIMAL | {"temperature": 1e-4}).sampling_params(10).is_greedy


def nest_schema(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "nonsense", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"temperature": float("nan")},
        {"temperature": -1},
        {"temperature": "1"},
        {"top_p": 0},
        {"stop": [""]},
        {"stop": ["a"] * 5},
        {"seed": 2**64},
        {"n": 0},
        {"n": 9},
        {"tools": []},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}},
        {"response_format": {"type": "grammar"}},
        {"chat_template": "x"},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {"High": 1}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {"05": 1}},
        {"logit_bias": {"\u0663": 1}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 1_000_001}]}]},
        {"messages": [{"role": "user", "content": "a" * 600_000}] * 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "\ud800", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "deep", "schema": nest_schema(65)}}},
        # Null is for fields that exist, and only for those that may be missing.
        {"temprature": None},
        {"model": None},
        {"messages": None},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        {"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]},
        {"tool_choice": "auto"},
        {"store": True},
    ],
)
def test_invalid_and_unsupported_fields_are_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(MINIMAL | fields)
