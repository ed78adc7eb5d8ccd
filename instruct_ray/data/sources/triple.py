"""A triple: the form that rows of all formats are converted to. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "Triple":
        """Load a triple from its fields as JSON: the inverse of `dump`."""
        history = tuple((user, assistant) for user, assistant in values["history"])
        return cls(**{**values, "history": history})

    def dump(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @property
    def split_key(self) -> str:
        """Normalized text that decides the split: the input, or all user messages of a chat.

        Without the instruction, so that the same input with a reworded instruction stays in the same split.
        """
        user_texts = [user for user, _ in self.history] + [self.input or self.instruction]
        return " ".join(" ".join(user_texts).casefold().split())

    @property
    def group(self) -> tuple[str, str]:
        """Key of the rows whose rendered text is the same up to the input."""
        return self.system or "", self.instruction if self.input and not self.history else ""

    @property
    def content_digest(self) -> bytes:
        """128-bit digest of all text that is rendered, equal for exact duplicates only."""
        turns = [text for turn in self.history for text in turn]
        texts = [self.system or "", *turns, self.instruction, self.input, self.output]
        # Each with its length, so that no two different lists of texts give the same bytes.
        content = "".join(f"{len(text)}:{text}" for text in texts)
        return hashlib.blake2b(content.encode(), digest_size=16).digest()

    def assign_split(self, test_fraction: float, validation_fraction: float = 0.0) -> Split:
        """Return the split of the row, by a hash of `split_key`.

        It is the same on every machine and for every order of the rows, and `validation_fraction` does not affect which
        rows are test rows.
        """
        bucket = int.from_bytes(hashlib.sha256(self.split_key.encode()).digest()[:8], "big") / 2**64
        if bucket < test_fraction:
            return "test"
        return "validation" if bucket < test_fraction + validation_fraction else "train"
