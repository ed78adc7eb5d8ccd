"""What of an answer is sent at once and what is held back, for each form of calls; how calls are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.serving.call_stream import CallStream
from instruct_ray.serving.tool_use import ToolUse
from tests.data.rendering.families import FAMILIES, TEMPLATES
from tests.data.rendering.test_tool_chats import ADD, PLAIN, XML

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
PLAIN_CALL = '{"name": "add", "parameters": {"a": 1}}'
# A tokenizer that says itself how calls are read.
XML_TEMPLATE: dict[str, Any] = {
    "start_anchor": "<call=",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<call=(?P<name>\w+)>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}


def make_renderer(folder: Path, template: str, response_template: dict[str, Any] | None = None) -> Renderer:
    FAMILIES["qwen2.5"].save(folder)
    (folder / "chat_template.jinja").write_text(template)
    renderer = derive_renderer(folder, None)
    renderer.tokenizer.response_template = response_template
    return renderer


@pytest.fixture(scope="module")
def make_stream(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CallStream]:
    hermes = make_renderer(tmp_path_factory.mktemp("hermes"), (TEMPLATES / "hermes.jinja").read_text())
    plain = make_renderer(tmp_path_factory.mktemp("plain"), PLAIN)
    xml = make_renderer(tmp_path_factory.mktemp("xml"), XML, XML_TEMPLATE)
    renderers = {"hermes": hermes, "plain": plain, "xml": xml}

    def make(name: str = "hermes", *, one_call: bool = False) -> CallStream:
        tool_format = renderers[name].tool_chats.format
        assert tool_format is not None
        return CallStream(ToolUse(renderers[name], tool_format, [ADD], one_call))

    return make


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("name", "answer", "text", "arguments"),
    [
        ("hermes", CALL, "", ['{"a": 1, "b": 2}']),
        ("hermes", f"First.\n\n{CALL}\n{CALL}", "First.", ['{"a": 1, "b": 2}'] * 2),
        ("hermes", f"{CALL}\nDone.", "Done.", ['{"a": 1, "b": 2}']),
        ("hermes", "a < b <tool> \n <tool_cal", "a < b <tool> \n <tool_cal", []),
        ("hermes", "trailing space \n", "trailing space \n", []),
        ("hermes", "x <tool_call>{no json}</tool_call>", "x <tool_call>{no json}</tool_call>", []),
        ("hermes", CALL.replace("add", "other"), CALL.replace("add", "other"), []),
        ("hermes", CALL.replace("1", "NaN"), CALL.replace("1", "NaN"), []),
        ("hermes", "<tool_call>" + "[" * 5000, "<tool_call>" + "[" * 5000, []),
        ("hermes", CALL.replace("1", '"</tool_call>"'), CALL.replace("1", '"</tool_call>"'), []),
        ("plain", PLAIN_CALL, "", ['{"a": 1}']),
        ("plain", f" \n{PLAIN_CALL}", "", ['{"a": 1}']),
        ("plain", f"See {PLAIN_CALL}", f"See {PLAIN_CALL}", []),
        ("plain", '{"x": 1}', '{"x": 1}', []),
        ("plain", "No.", "No.", []),
        ("xml", '<call=add>{"a": 1}', "", ['{"a": 1}']),
        ("xml", "a <call", "a <call", []),
    ],
)
def test_text_and_calls(
    make_stream: Callable[..., CallStream], size: int, name: str, answer: str, text: str, arguments: list[str]
) -> None:
    stream = make_stream(name)
    sent = "".join(stream.push(answer[start : start + size]) for start in range(0, len(answer), size))
    end = stream.finish(is_cut=False)
    assert sent + end.text == text
    assert [(call.name, call.arguments) for call in end.calls] == [("add", one) for one in arguments]


def test_text_is_sent_as_soon_as_it_is_no_call(make_stream: Callable[..., CallStream]) -> None:
    stream = make_stream()
    assert [stream.push(part) for part in ("It is ", "<", "b", " <tool", "_call>{")] == ["It is", "", " <b", "", ""]


def test_only_call_ends_the_answer(make_stream: Callable[..., CallStream]) -> None:
    stream = make_stream(one_call=True)
    stream.push(f"Yes. {CALL[:-3]}")
    assert not stream.is_complete
    stream.push(CALL[-3:] + "\n<tool")
    assert stream.is_complete
    assert len(stream.finish(is_cut=False).calls) == 1


def test_complete_calls_of_a_cut_answer_are_kept(make_stream: Callable[..., CallStream]) -> None:
    stream = make_stream()
    stream.push(f"{CALL}\n{CALL[:30]}")
    assert len(stream.finish(is_cut=True).calls) == 1


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("hermes", CALL[:40], ""),
        ("hermes", f"I add.\n{CALL[:40]}", "I add."),
        ("plain", PLAIN_CALL[:-2], ""),
        ("plain", PLAIN_CALL[:4], ""),
        ("xml", 'I add. <call=add>{"a": ', "I add."),
        # What is no call is content, cut or not.
        ("hermes", "a < b <tool", "a < b <tool"),
        ("hermes", "x <tool_call>{no json}</tool_call> and", "x <tool_call>{no json}</tool_call> and"),
        ("plain", '{"x": [1, 2', '{"x": [1, 2'),
        ("plain", "No", "No"),
    ],
)
def test_call_that_is_cut_is_no_content(
    make_stream: Callable[..., CallStream], name: str, answer: str, text: str
) -> None:
    stream = make_stream(name)
    sent = stream.push(answer)
    end = stream.finish(is_cut=True)
    assert (sent + end.text, end.calls) == (text, ())
