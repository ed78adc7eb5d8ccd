"""Rows -> counts of bounded size: many tasks make them, one report shows them."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from instruct_ray.data.example import Example
from instruct_ray.data.report.token_view import TokenView, make_token_views
from instruct_ray.data.sources.triple import Triple

# Lengths are exact below 2**LENGTH_BITS tokens, and from there on rounded down to so many binary digits (3 %).
LENGTH_BITS = 6
# Answers longer than this are no labels, and instructions are told apart by so much of them and a hash of the rest.
MAX_LABEL_CHARACTERS = 40
MAX_NAME_CHARACTERS = 200
# Texts that a task, and in the end the report, counts by name.
MAX_NAMED = 100
# Rows shown as the model sees them, and tokens shown of each.
NUM_SAMPLES = 6
SAMPLE_TOKENS = 400


@dataclass
class TopCounts:
    """How often each of many texts occurs: the most frequent by name, of the others sums.

    Sums can be added because rows of one instruction meet in one task; those of instructions too frequent for that
    are frequent in each, hence counted by name.
    """

    named: Counter[str] = field(default_factory=Counter)
    num_other_rows: int = 0
    num_other_texts: int = 0
    other_log_sum: float = 0.0
    """Sum of n ln n over the other texts, n their number of rows: what their entropy is made of."""

    def add(self, text: str) -> None:
        """Count a row."""
        self.named[text] += 1

    def merge(self, other: "TopCounts") -> None:
        """Add what another task counted."""
        self.named.update(other.named)
        self.num_other_rows += other.num_other_rows
        self.num_other_texts += other.num_other_texts
        self.other_log_sum += other.other_log_sum

    def trim(self, limit: int = MAX_NAMED) -> None:
        """Keep the names of the most frequent texts only."""
        for text, count in self.most_frequent()[limit:]:
            self.num_other_rows += count
            self.num_other_texts += 1
            self.other_log_sum += count * math.log(count)
            del self.named[text]

    def most_frequent(self) -> list[tuple[str, int]]:
        """Named texts with their rows, by falling number, then by text."""
        return sorted(self.named.items(), key=lambda item: (-item[1], item[0]))

    @property
    def num_rows(self) -> int:
        return self.named.total() + self.num_other_rows

    @property
    def num_texts(self) -> int:
        """Different texts."""
        return len(self.named) + self.num_other_texts

    @property
    def perplexity(self) -> float:
        """e to the power of the entropy: so many texts, equally frequent, would be as diverse; 0 without rows."""
        if not self.num_rows:
            return 0.0
        log_sum = self.other_log_sum + math.fsum(count * math.log(count) for count in self.named.values())
        return math.exp(math.log(self.num_rows) - log_sum / self.num_rows)


@dataclass
class Statistics:
    """Counts over the rows that are trained on, each once, whatever its weight."""

    num_rows: int = 0
    num_without_input: int = 0
    num_multi_turn: int = 0
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the tokens of their last prompt, rounded by `round_length`."""
    completion_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the tokens of their last answer and its stop token."""
    longest_prompt: int = 0
    longest_completion: int = 0
    labels: TopCounts = field(default_factory=TopCounts)
    """Rows by their answer, where it is short."""
    instructions: TopCounts = field(default_factory=TopCounts)
    """Rows by instruction, where they have an input."""
    samples: list[tuple[bytes, TokenView]] = field(default_factory=list)
    """Some rows, chosen by a hash of their id, with the hash."""

    def add(self, row_id: str, instruction: str, answer: str, examples: Sequence[Example]) -> None:
        """Count a row; for the texts see `countable`."""
        self.num_rows += 1
        self.num_multi_turn += len(examples) > 1
        self.num_without_input += not instruction
        prompt, completion = len(examples[-1].prompt_ids), len(examples[-1].completion_ids)
        self.prompt_lengths[round_length(prompt)] += 1
        self.completion_lengths[round_length(completion)] += 1
        self.longest_prompt = max(self.longest_prompt, prompt)
        self.longest_completion = max(self.longest_completion, completion)
        if answer:
            self.labels.add(answer)
        if instruction:
            self.instructions.add(instruction)
        key = hashlib.blake2b(row_id.encode(), digest_size=8).digest()
        if len(self.samples) < NUM_SAMPLES or key < self.samples[-1][0]:
            self.samples.append((key, make_token_views(row_id, examples)[-1].clipped(SAMPLE_TOKENS)))
            self._trim_samples()

    def merge(self, other: "Statistics") -> None:
        """Add what another task counted."""
        self.num_rows += other.num_rows
        self.num_without_input += other.num_without_input
        self.num_multi_turn += other.num_multi_turn
        self.prompt_lengths.update(other.prompt_lengths)
        self.completion_lengths.update(other.completion_lengths)
        self.longest_prompt = max(self.longest_prompt, other.longest_prompt)
        self.longest_completion = max(self.longest_completion, other.longest_completion)
        self.labels.merge(other.labels)
        self.instructions.merge(other.instructions)
        self.samples += other.samples
        self.trim()

    def trim(self) -> None:
        """Make what a task sends, or the report keeps, small."""
        self.labels.trim()
        self.instructions.trim()
        self._trim_samples()

    def _trim_samples(self) -> None:
        self.samples = sorted(self.samples, key=lambda sample: sample[0])[:NUM_SAMPLES]


def report_keys(triple: Triple) -> tuple[str, str]:
    """(instruction, answer) to count a row by: the one empty where there is no input, the other where it is long."""
    instruction = triple.instruction if triple.input else ""
    if len(instruction) > MAX_NAME_CHARACTERS:
        digest = hashlib.blake2b(instruction.encode(), digest_size=4).hexdigest()
        instruction = f"{instruction[:MAX_NAME_CHARACTERS]}… [{digest}]"
    answer = triple.output.strip()
    return instruction, answer if len(answer) <= MAX_LABEL_CHARACTERS else ""


def round_length(length: int) -> int:
    """A length without the binary digits that no histogram shows."""
    shift = max(0, length.bit_length() - LENGTH_BITS)
    return length >> shift << shift
