"""What the rows are like: counts of bounded size that many tasks make and one report shows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from instruct_ray.data.packing import Example
from instruct_ray.data.triples import Triple

# Lengths are counted in buckets of this many tokens.
BUCKET_TOKENS = 16
# Answers longer than this are no labels.
MAX_LABEL_CHARACTERS = 40
# Different texts counted one by one, in a task and in all; what is rarer is counted as one.
MAX_COUNTED = 10_000


@dataclass
class Statistics:
    """Counts over the rows that are trained on or held out."""

    num_rows: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_turns: int = 0
    num_without_input: int = 0
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the tokens of their (last) prompt, rounded down to a bucket."""
    completion_lengths: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    """Rows by their answer, where it is short."""
    instructions: Counter[str] = field(default_factory=Counter)
    """Rows by instruction, where they have an input."""

    def add(self, triple: Triple, examples: list[Example]) -> None:
        """Count a row."""
        self.num_rows += 1
        self.num_turns += len(examples)
        self.num_tokens += sum(example.num_tokens - example.num_counted for example in examples)
        self.num_trained_tokens += sum(len(example.completion_ids) for example in examples)
        self.prompt_lengths[_bucket(len(examples[-1].prompt_ids))] += 1
        self.completion_lengths[_bucket(len(examples[-1].completion_ids))] += 1
        _count(self.labels, triple.output if len(triple.output) <= MAX_LABEL_CHARACTERS else "")
        if triple.input:
            _count(self.instructions, triple.instruction)
        else:
            self.num_without_input += 1

    def merge(self, other: "Statistics") -> None:
        """Add what another task counted."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                mine: Counter[Any] = vars(self)[name]
                mine.update(value)
            else:
                vars(self)[name] += value

    def dump(self) -> dict[str, Any]:
        """As JSON; texts by falling number, the rest of them as a number."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            if not isinstance(value, Counter):
                values[name] = value
            elif name.endswith("_lengths"):
                values[name] = {str(length): value[length] for length in sorted(value)}
            else:
                values[name] = dict(sorted(value.items(), key=lambda item: (-item[1], item[0]))[:MAX_COUNTED])
        return values


def _bucket(length: int) -> int:
    return length // BUCKET_TOKENS * BUCKET_TOKENS


def _count(counter: Counter[str], text: str) -> None:
    """Count a text by name while there is room; the empty name stands for all others."""
    counter[text if text in counter or len(counter) < MAX_COUNTED else ""] += 1
