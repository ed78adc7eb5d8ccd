"""Validation of chat requests."""

import pytest
from pydantic import ValidationError

from instruct_ray.serving.schema import ChatRequest

MINIMAL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_text_parts_are_joined_and_developer_becomes_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = ChatRequest.model_validate(MINIMAL | {"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].to_message() == {"role": "system", "content": "ab"}


def test_both_names_of_the_token_limit_are_accepted() -> None:
    assert ChatRequest.model_validate(MINIMAL | {"max_completion_tokens": 5}).sampling_params(10).max_new_tokens == 5
    assert ChatRequest.model_validate(MINIMAL | {"max_tokens": 50}).sampling_params(10).max_new_tokens == 10
    assert ChatRequest.model_validate(MINIMAL).sampling_params(10).max_new_tokens == 10


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
        {"n": 2},
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"chat_template": "x"},
        {"logprobs": True},
        {"presence_penalty": 1},
    ],
)
def test_invalid_and_unsupported_fields_are_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(MINIMAL | fields)
