"""replica: splits the text of an answer, as it is generated, into content and calls of tools."""

import uuid
from dataclasses import dataclass

from instruct_ray.serving.replica_messages import ToolCall
from instruct_ray.serving.tool_use import ToolUse


@dataclass(frozen=True)
class AnswerEnd:
    """The last content of an answer, and its calls."""

    text: str
    calls: tuple[ToolCall, ...]


class CallStream:
    """Holds back what may belong to a call until the answer ends; everything before it is content at once."""

    def __init__(self, use: ToolUse) -> None:
        self._use, self._prefix = use, use.tool_format.prefix
        syntax = use.tool_format.syntax
        self._closing = syntax.closing.strip() if syntax and use.one_call else ""
        self._held = ""
        self._is_holding = syntax is None and not self._prefix
        # An answer that begins as no call has none, if calls have no mark.
        self._is_text = False
        self.is_complete = False
        """Whether the answer has the only call that it may have."""

    def push(self, text: str) -> str:
        """Add text; returns what is certainly content."""
        self._held += text
        if not self._is_holding:
            return self._take(self._find_call())
        if self._closing:
            self.is_complete = self._has_call(len(text))
        return ""

    def finish(self, *, is_cut: bool) -> AnswerEnd:
        """End the answer. What was held back and has no valid call is content.

        Args:
            is_cut: whether the answer reached its limit; a last call that is not complete is then left out. OpenAI
                sends its beginning, with arguments that are no JSON; vLLM sends it as content, which clients would take
                for the answer. Without it there is nothing that could be run or shown, and the finish reason says why.
        """
        held = self._held
        answer = self._use.parse(held)
        if is_cut and not answer.calls and (size := self._find_cut_call()) is not None:
            held = held[:size].rstrip()
            answer = self._use.parse(held)
        calls = answer.calls[:1] if self._use.one_call else answer.calls
        if not calls:
            return AnswerEnd(held, ())
        made = tuple(ToolCall(f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments) for call in calls)
        return AnswerEnd(answer.text, made)

    def _find_call(self) -> int:
        """Where the held text may be a call, white space before it included; its length if it can't."""
        held = self._held
        if not self._prefix:
            start = held.lstrip()[:1]
            self._is_text = self._is_text or start not in ("", "{")
            self._is_holding = start == "{" and not self._is_text
            return len(held) if self._is_text else 0
        at = held.find(self._prefix)
        self._is_holding = at >= 0
        if at < 0:
            sizes = range(min(len(self._prefix) - 1, len(held)), 0, -1)
            at = len(held) - next((size for size in sizes if held.endswith(self._prefix[:size])), 0)
        return len(held[:at].rstrip())

    def _find_cut_call(self) -> int | None:
        """Where a call begins that the held text does not complete; None if there is none."""
        syntax = self._use.tool_format.syntax
        if not self._is_holding or (syntax is None and not self._prefix):
            return None
        if syntax is not None and not self._prefix:
            # Without a mark a call is told from other JSON by its first key.
            written, expected = "".join(self._held.split()), "".join(syntax.before_name.split())
            return 0 if written.startswith(expected) or expected.startswith(written) else None
        start = self._held.rfind(self._prefix)
        closing = syntax.closing.strip() if syntax else ""
        return None if closing and closing in self._held[start:] else start

    def _has_call(self, num_new: int) -> bool:
        """Whether the held text begins with a complete call; looks at the ends that are new."""
        end = max(0, len(self._held) - num_new - len(self._closing))
        while (at := self._held.find(self._closing, end)) >= 0:
            end = at + len(self._closing)
            if self._use.parse(self._held[:end]).calls:
                self._held = self._held[:end]
                return True
        return False

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text
