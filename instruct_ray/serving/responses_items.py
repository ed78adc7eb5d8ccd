"""The input of a request of OpenAI's responses API: messages, calls and results of tools; and its tools."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from instruct_ray.serving.chat_request import MAX_CHARACTERS
from instruct_ray.serving.request_fields import RequestObject
from instruct_ray.serving.tool_fields import CalledFunction, FunctionDefinition, FunctionName

UNUSED_ITEM_FIELDS: dict[str, tuple[object, ...]] = {
    "id": (),
    "phase": (),
    "status": ("completed", "incomplete"),
}
UNUSED_CALL_FIELDS: dict[str, tuple[object, ...]] = {
    **UNUSED_ITEM_FIELDS,
    "async": (False,),
    "caller": ({"type": "direct"},),
    "namespace": (),
}
UNUSED_RESULT_FIELDS: dict[str, tuple[object, ...]] = {**UNUSED_CALL_FIELDS, "name": ()}
UNUSED_PART_FIELDS: dict[str, tuple[object, ...]] = {"annotations": ([],), "logprobs": ([],)}

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class InputPart(RequestObject):
    """A text part of a message."""

    unused_fields = UNUSED_PART_FIELDS

    type: Literal["input_text", "output_text"]
    text: Text


class InputItem(RequestObject):
    """An item of the input."""

    unused_fields = UNUSED_ITEM_FIELDS

    @classmethod
    def _is_unused(cls, key: str, value: object) -> bool:
        # Names of earlier answers, which nothing here remembers.
        return key == "id" or super()._is_unused(key, value)


class InputMessage(InputItem):
    """A message of the input: of the user, or an answer that the client sends back."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[InputPart]


class InputCall(InputItem, CalledFunction):
    """A call that the client sends back."""

    unused_fields = UNUSED_CALL_FIELDS

    type: Literal["function_call"]
    call_id: str


class InputResult(InputItem):
    """The result of a call."""

    unused_fields = UNUSED_RESULT_FIELDS

    type: Literal["function_call_output"]
    call_id: str
    output: Text | list[InputPart]


Item = InputMessage | InputCall | InputResult


class ResponsesTool(FunctionDefinition):
    """A tool; only functions are supported."""

    type: Literal["function"]

    def to_chat(self) -> dict[str, Any]:
        """The same as a tool of a chat."""
        return {"type": self.type, "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class ResponsesToolChoice(RequestObject):
    """A choice that makes the model call one function."""

    type: Literal["function"]
    name: FunctionName


def join_text(content: str | list[InputPart]) -> str:
    """The content of a message as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def to_chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages of a chat. Calls belong to the message of the assistant before them, as in its answer."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": join_text(item.content)})
        elif isinstance(item, InputResult):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": join_text(item.output)})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": item.arguments}
            messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
    return messages
