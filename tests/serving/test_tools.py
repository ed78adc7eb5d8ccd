"""Tools at the endpoint: a tiny model, tuned here on calls, answers the `openai` client, LangChain and an agent."""

import json
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from jobs.examples import agent
from tests.serving import calculator
from tests.serving.calculator import ADD_ARGUMENTS, ADD_QUESTION, TOOL, calculate

BOTH_QUESTION = {"role": "user", "content": "Both: 1 + 4 and 2 + 4?"}
# Named otherwise than the tuned model knows it, with arguments that it would not write.
OTHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_mode",
        "parameters": {
            "type": "object",
            "properties": {"mode": {"enum": ["fast", "slow"]}},
            "required": ["mode"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(calculator_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=calculator_url, api_key="none", max_retries=0)


def ask(client: openai.OpenAI, *messages: Any, **fields: Any) -> Any:
    request = {"model": "calculator", "messages": [*messages], "tools": [TOOL], "temperature": 0} | fields
    return client.chat.completions.create(**request)


def read_stream(stream: Any) -> tuple[str, list[Any], str | None]:
    """The content, the calls and the finish reason of a stream."""
    text, calls, reason = "", list[Any](), None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            reason = choice.finish_reason or reason
    return text, calls, reason


def test_call_and_answer_to_its_result(client: openai.OpenAI) -> None:
    response = ask(client, ADD_QUESTION)
    [choice] = response.choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "calculate")
    assert json.loads(call.function.arguments) == ADD_ARGUMENTS
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    result = {"role": "tool", "tool_call_id": call.id, "content": "5"}
    answered = ask(client, ADD_QUESTION, choice.message.model_dump(), result).choices[0]
    assert (answered.message.content, answered.finish_reason) == ("It is 5.", "stop")
    assert answered.message.tool_calls is None


def test_streamed_call(client: openai.OpenAI) -> None:
    text, [call], reason = read_stream(ask(client, ADD_QUESTION, stream=True))
    assert (text, reason, call.index, call.function.name) == ("", "tool_calls", 0, "calculate")
    assert call.id.startswith("call_") and json.loads(call.function.arguments) == ADD_ARGUMENTS


def test_several_calls_and_text(client: openai.OpenAI) -> None:
    message = ask(client, BOTH_QUESTION).choices[0].message
    assert message.content == "I add twice."
    assert [json.loads(call.function.arguments)["a"] for call in message.tool_calls] == [1, 2]
    text, calls, reason = read_stream(ask(client, BOTH_QUESTION, stream=True))
    assert (text, [call.index for call in calls], reason) == ("I add twice.", [0, 1], "tool_calls")
    assert len({call.id for call in calls}) == 2


def test_one_call_if_calls_must_not_be_parallel(client: openai.OpenAI) -> None:
    for fields in ({}, {"tool_choice": "required"}):
        choice = ask(client, BOTH_QUESTION, parallel_tool_calls=False, **fields).choices[0]
        assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "tool_calls")


def test_text_without_a_call_is_content(client: openai.OpenAI) -> None:
    hello = {"role": "user", "content": "Hello"}
    for choice in (ask(client, hello).choices[0], ask(client, hello, n=2).choices[1]):
        assert (choice.message.content, choice.message.tool_calls) == ("Hi, how are you?", None)
        assert choice.finish_reason == "stop"
    assert read_stream(ask(client, hello, stream=True)) == ("Hi, how are you?", [], "stop")


def test_call_that_is_cut_is_left_out(client: openai.OpenAI) -> None:
    choice = ask(client, ADD_QUESTION, max_tokens=8).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls, choice.message.content) == ("length", None, "")
    assert read_stream(ask(client, ADD_QUESTION, max_tokens=8, stream=True)) == ("", [], "length")


def test_tokens_of_the_cache_are_reported(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "You count. " * 12}

    def ask_cached(question: str) -> tuple[int, int]:
        usage = ask(client, system, {"role": "user", "content": question}, max_tokens=1).usage
        return usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens

    counts = [ask_cached(f"What is {number} + 3?") for number in range(4)]
    assert counts[0][0] == 0 and 64 < counts[-1][0] < counts[-1][1]
    stream = ask(client, system, ADD_QUESTION, stream=True, stream_options={"include_usage": True}, n=2)
    assert list(stream)[-1].usage.prompt_tokens_details.cached_tokens == counts[-1][0]


def test_call_of_an_unknown_function_is_content(client: openai.OpenAI) -> None:
    # The tuned model calls what it knows, whatever the tools are.
    renamed = json.loads(json.dumps(TOOL).replace('"calculate"', '"calculate2"'))
    choice = ask(client, ADD_QUESTION, tools=[renamed]).choices[0]
    if choice.message.tool_calls is None:
        assert choice.finish_reason == "stop"
    else:
        assert choice.message.tool_calls[0].function.name == "calculate2"


def test_no_tool_is_called_if_none_may_be(client: openai.OpenAI) -> None:
    choice = ask(client, ADD_QUESTION, tool_choice="none", max_tokens=20).choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason in ("stop", "length")


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_required_and_named_calls_always_fit_their_schema(client: openai.OpenAI, temperature: float) -> None:
    hello = {"role": "user", "content": "Hello"}
    named = {"type": "function", "function": {"name": "set_mode"}}
    for choice in ("required", named):
        fields = {"tool_choice": choice, "temperature": temperature, "seed": 3, "n": 2, "max_tokens": 100}
        for answer in ask(client, hello, tools=[OTHER], **fields).choices:
            calls = [call.function for call in answer.message.tool_calls]
            assert {call.name for call in calls} == {"set_mode"}
            assert {json.loads(call.arguments)["mode"] for call in calls} <= {"fast", "slow"}
            # The tiny model goes on calling, up to its limit, where it may.
            assert answer.finish_reason == "tool_calls" if choice == named else answer.message.content is None


def test_strict_functions_and_schemas_hold_beside_calls(client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {**OTHER["function"], "strict": True}}
    for question in (ADD_QUESTION, {"role": "user", "content": "Hello"}):
        answer = ask(client, question, tools=[strict], temperature=1, seed=1, max_tokens=60).choices[0].message
        for call in answer.tool_calls or []:
            assert json.loads(call.function.arguments)["mode"] in ("fast", "slow")
        response_format = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}},
        }
        fields = {"response_format": response_format, "temperature": 1, "seed": 1}
        answer = ask(client, question, **fields).choices[0].message
        assert answer.tool_calls or json.loads(answer.content) in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, None),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, None),
        ({"tools": openai.omit, "tool_choice": "auto"}, None),
        ({"tools": openai.omit, "parallel_tool_calls": True}, None),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, None),
        ({"messages": [ADD_QUESTION, {"role": "tool", "tool_call_id": "1", "content": "x"}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}],
          "tool_choice": "required"}, "tool_choice"),
        ({"functions": [TOOL["function"]]}, "functions"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_refused(client: openai.OpenAI, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, ADD_QUESTION, **fields)
    assert param is None or error.value.param == param


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchain_binds_tools(calculator_url: str, use_responses_api: bool) -> None:
    llm = ChatOpenAI(
        model="calculator", base_url=calculator_url, api_key="none", temperature=0, use_responses_api=use_responses_api
    )
    [call] = llm.bind_tools([calculate]).invoke("What is 2 + 3?").tool_calls
    assert (call["name"], call["args"]) == ("calculate", ADD_ARGUMENTS)
    parts = list(llm.bind_tools([calculate], tool_choice="any").stream("Take 1 from 9."))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert [one["name"] for one in whole.tool_calls] == ["calculate"] * len(whole.tool_calls)


@pytest.mark.parametrize("question", [question for question, *_ in calculator.QUESTIONS])
def test_agent_with_a_calculator(
    calculator_url: str, question: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    agent.main(["--base-url", calculator_url, "--model", "calculator", "--question", question])
    [asked, called, result, answer] = capsys.readouterr().out.splitlines()
    [(_, a, operator, b)] = [one for one in calculator.QUESTIONS if one[0] == question]
    expected = calculate.invoke({"a": a, "operator": operator, "b": b})
    assert asked == f"human: {question}"
    assert called.startswith("ai: calculate(")
    assert (result, answer) == (f"tool: {expected}", f"ai: It is {expected}.")
