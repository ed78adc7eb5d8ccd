"""A chat with tools, as part of a triple. Pure."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolChat:
    """The tools and the messages of a row whose chat has tools; as JSON, which is compared and stored as it is."""

    tools_json: str
    """OpenAI's function definitions."""
    messages_json: str
    """The messages after the system message, through the last answer that is trained on: `role` and `content`, the
    assistant's `tool_calls` (with their arguments as objects), and `tool_call_id` of a tool's result."""
    targets: tuple[int, ...]
    """Indices of the messages that are trained on; the last one is the last message."""

    @classmethod
    def make(cls, tools: list[Any], messages: list[Any], targets: tuple[int, ...]) -> "ToolChat":
        """Make a chat from its tools and messages."""
        return cls(_dump(tools), _dump(messages), targets)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The function definitions."""
        tools: list[dict[str, Any]] = json.loads(self.tools_json)
        return tools

    @property
    def messages(self) -> list[Any]:
        """The messages."""
        messages: list[Any] = json.loads(self.messages_json)
        return messages

    @property
    def user_texts(self) -> list[str]:
        """What the user says."""
        return [message["content"] for message in self.messages if message["role"] == "user"]

    def with_messages(self, messages: list[Any]) -> "ToolChat":
        """The same chat with other messages."""
        return ToolChat(self.tools_json, _dump(messages), self.targets)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
