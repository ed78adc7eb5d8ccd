"""A triple: the form that rows of all formats are converted to. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from instruct_ray.data.sources.tool_chat import ToolChat

HeldOutSplit = Literal["validation", "test"]
Split = HeldOutSplit | Literal["train"]


@dataclass(frozen=True)
class Triple:
    """Instruction, input and output of one row.

    A chat is a triple too: its last user message is the instruction, its last answer the output, and the turns before
    them are the history.
    """

    id: str
    instruction: str
    input: str
    """What the instruction applies to; may be empty."""
    output: str
    system: str | None = None
    """System message of this row, in place of `data.system_prompt`."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (user, assistant) turns; their answers are targets too."""
    untrained_turns: tuple[int, ...] = ()
    """Indices of the turns in `history` whose answers are no targets."""
    tool_chat: ToolChat | None = None
    """All messages of a chat that has tools; `history` is then empty, and `output` is the last answer as the chat
    template writes it."""

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "Triple":
        """Load a triple from its fields as JSON: the inverse of `dump`."""
        history = tuple((user, assistant) for user, assistant in values["history"])
        untrained_turns = tuple(values.get("untrained_turns", ()))
        chat = values.get("tool_chat")
        tool_chat = None if chat is None else ToolChat(**{**chat, "targets": tuple(chat["targets"])})
        return cls(
            **{**values, "history": history, "untrained_turns": untrained_turns, "tool_chat": tool_chat},
        )

    def dump(self) -> dict[str, Any]:
        """Return the fields as JSON values; those that few rows have only if they are not empty."""
        values = asdict(self)
        if self.tool_chat is None:
            del values["tool_chat"]
        if not self.untrained_turns:
            del values["untrained_turns"]
        return values

    @property
    def trained_history(self) -> list[tuple[int, str]]:
        """(index, answer) of the turns in `history` that are targets."""
        return [(index, answer) for index, (_, answer) in enumerate(self.history) if index not in self.untrained_turns]

    @property
    def split_key(self) -> str:
        """Normalized text that decides the split: the input, or all user messages of a chat.

        Without the instruction, so that the same input with a reworded instruction stays in the same split.
        """
        return self._normalize_prompt(self.input or self.instruction)

    @property
    def prompt_key(self) -> str:
        """Normalized text of the whole prompt, without its system message: decides where inputs are placeholders."""
        return self._normalize_prompt(f"{self.instruction} {self.input}")

    def _normalize_prompt(self, last_text: str) -> str:
        """Join the earlier user messages and a text, case folded and with single spaces."""
        earlier = [user for user, _ in self.history] if self.tool_chat is None else self.tool_chat.user_texts[:-1]
        user_texts = [*earlier, last_text]
        return " ".join(" ".join(user_texts).casefold().split())

    @property
    def num_characters(self) -> int:
        """Characters of all texts."""
        texts = [self.system or "", self.instruction, self.input, self.output]
        if self.tool_chat is not None:
            texts += [self.tool_chat.tools_json, self.tool_chat.messages_json]
        return sum(map(len, texts)) + sum(len(text) for turn in self.history for text in turn)

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The function definitions of a chat with tools."""
        return None if self.tool_chat is None else self.tool_chat.tools

    @property
    def group(self) -> tuple[str, str]:
        """Key of the rows whose rendered text is the same up to the input."""
        if self.tool_chat is not None:
            return self.system or "", self.tool_chat.tools_json
        return self.system or "", self.instruction if self.input and not self.history else ""

    @property
    def content_digest(self) -> bytes:
        """128-bit digest of all text that is rendered and of what is trained on, equal for exact duplicates only."""
        turns = [text for turn in self.history for text in turn]
        texts = [self.system or "", *turns, self.instruction, self.input, self.output]
        # Each with its length, so that no two different lists of texts give the same bytes.
        content = "".join(f"{len(text)}:{text}" for text in texts)
        if self.untrained_turns:
            content += f"untrained {self.untrained_turns}"
        if self.tool_chat is not None:
            content += f"{self.tool_chat}"
        return hashlib.blake2b(content.encode(), digest_size=16).digest()

    def assign_split(self, test_fraction: float, validation_fraction: float = 0.0) -> Split:
        """Return the split of the row by its `split_key`; see `assign_split`."""
        return assign_split(self.split_key, test_fraction, validation_fraction)


def assign_split(key: str, test_fraction: float, validation_fraction: float) -> Split:
    """Return the split of all rows with a key, by its hash.

    It is the same on every machine and for every order of the rows, and `validation_fraction` does not affect which
    rows are test rows.
    """
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if bucket < test_fraction:
        return "test"
    return "validation" if bucket < test_fraction + validation_fraction else "train"
