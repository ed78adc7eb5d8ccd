"""A triple: the one form that every row format becomes. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

HeldOutSplit = Literal["validation", "test"]
Split = HeldOutSplit | Literal["train"]


@dataclass(frozen=True)
class Triple:
    """One row: an instruction, what it is applied to (may be empty), and the answer; in a chat, the last of several.

    A chat of messages is held in the same form: its last question is the instruction, what was said before the history.
    """

    id: str
    instruction: str
    input: str
    output: str
    system: str | None = None
    """System message of this row, in place of `data.system_prompt`."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns; their answers are trained as well."""

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "Triple":
        """The inverse of `dump`."""
        history = tuple((question, answer) for question, answer in values["history"])
        return cls(**{**values, "history": history})

    def dump(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        return asdict(self)

    @property
    def split_key(self) -> str:
        """What decides the side of the split: the input, so that a reworded instruction can't leak it; of a chat, all
        that was asked."""
        asked = [question for question, _ in self.history] + [self.input or self.instruction]
        return " ".join(" ".join(asked).casefold().split())

    @property
    def group(self) -> tuple[str, str]:
        """Rows of a group share their rendered text up to the input."""
        return self.system or "", self.instruction if self.input and not self.history else ""

    @property
    def content_digest(self) -> bytes:
        """128 bits over everything that is trained on, equal for exact duplicates only."""
        turns = [part for turn in self.history for part in turn]
        parts = [self.system or "", *turns, self.instruction, self.input, self.output]
        # With their lengths, so that no text can pass for two.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def assign_split(self, test_fraction: float, validation_fraction: float = 0.0) -> Split:
        """Where the row goes, by a hash of `split_key`: the same on every machine and for every order of the rows. What
        is a test row does not depend on how many are for validation."""
        bucket = int.from_bytes(hashlib.sha256(self.split_key.encode()).digest()[:8], "big") / 2**64
        if bucket < test_fraction:
            return "test"
        return "validation" if bucket < test_fraction + validation_fraction else "train"
