"""Rows -> statistics of bounded size. Each task computes its own; the report merges and shows them."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from instruct_ray.data.example import Example
from instruct_ray.data.report.token_view import TokenView, make_token_views
from instruct_ray.data.sources.triple import Triple

# Lengths are exact below 2**LENGTH_BITS tokens. Longer ones are rounded down to LENGTH_BITS binary digits (3 %).
LENGTH_BITS = 6
# Longer answers are not counted as labels.
MAX_LABEL_CHARACTERS = 40
# Longer instructions are shortened, with a hash of the full text.
MAX_KEY_CHARACTERS = 200
# Texts that a task or the report counts one by one.
MAX_COUNTED_TEXTS = 100
# Sample rows in the report, and the tokens shown of each.
NUM_SAMPLES = 6
SAMPLE_TOKENS = 400


@dataclass
class TopCounts:
    """Counts of texts: one count for each of the most frequent texts, and sums over all others.

    The sums of two tasks can be added because all rows of an instruction are usually in one task. The only exceptions
    are oversized groups, and these are among the most frequent texts of every task.
    """

    counts: Counter[str] = field(default_factory=Counter)
    """Rows of each of the most frequent texts."""
    num_other_rows: int = 0
    num_other_texts: int = 0
    other_log_sum: float = 0.0
    """Sum of n ln n over the other texts, where n is a text's number of rows; needed for the entropy."""

    def add(self, text: str) -> None:
        """Count a row with this text."""
        self.counts[text] += 1

    def merge(self, other: "TopCounts") -> None:
        """Add the counts of another task."""
        self.counts.update(other.counts)
        self.num_other_rows += other.num_other_rows
        self.num_other_texts += other.num_other_texts
        self.other_log_sum += other.other_log_sum

    def trim(self, limit: int = MAX_COUNTED_TEXTS) -> None:
        """Keep the counts of the most frequent texts only."""
        for text, count in self.most_frequent()[limit:]:
            self.num_other_rows += count
            self.num_other_texts += 1
            self.other_log_sum += count * math.log(count)
            del self.counts[text]

    def most_frequent(self) -> list[tuple[str, int]]:
        """(text, number of rows) of the counted texts, most frequent first, then by text."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))

    @property
    def num_rows(self) -> int:
        """Rows with any text."""
        return self.counts.total() + self.num_other_rows

    @property
    def num_texts(self) -> int:
        """Distinct texts."""
        return len(self.counts) + self.num_other_texts

    @property
    def perplexity(self) -> float:
        """exp(entropy): the number of equally frequent texts that would be as diverse; 0 without rows."""
        if not self.num_rows:
            return 0.0
        log_sum = self.other_log_sum + math.fsum(count * math.log(count) for count in self.counts.values())
        return math.exp(math.log(self.num_rows) - log_sum / self.num_rows)


@dataclass
class Statistics:
    """Statistics of the rows to train on. Each row counts once, whatever its weight."""

    num_rows: int = 0
    num_without_input: int = 0
    num_multi_turn: int = 0
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the length of their last prompt, see `round_length`."""
    completion_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the length of their last completion, see `round_length`."""
    longest_prompt: int = 0
    longest_completion: int = 0
    labels: TopCounts = field(default_factory=TopCounts)
    """Short answers."""
    instructions: TopCounts = field(default_factory=TopCounts)
    """Instructions of the rows with an input."""
    samples: list[tuple[bytes, TokenView]] = field(default_factory=list)
    """(hash of the row id, row) of the rows with the lowest hashes."""

    def add(self, row_id: str, instruction: str, answer: str, examples: Sequence[Example]) -> None:
        """Count a row; for `instruction` and `answer` see `report_keys`."""
        self.num_rows += 1
        self.num_multi_turn += len(examples) > 1
        self.num_without_input += not instruction
        prompt_length, completion_length = len(examples[-1].prompt_ids), len(examples[-1].completion_ids)
        self.prompt_lengths[round_length(prompt_length)] += 1
        self.completion_lengths[round_length(completion_length)] += 1
        self.longest_prompt = max(self.longest_prompt, prompt_length)
        self.longest_completion = max(self.longest_completion, completion_length)
        if answer:
            self.labels.add(answer)
        if instruction:
            self.instructions.add(instruction)
        key = hashlib.blake2b(row_id.encode(), digest_size=8).digest()
        if len(self.samples) < NUM_SAMPLES or key < self.samples[-1][0]:
            self.samples.append((key, make_token_views(row_id, examples)[-1].clip(SAMPLE_TOKENS)))
            self._trim_samples()

    def merge(self, other: "Statistics") -> None:
        """Add the counts of another task."""
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
        """Reduce the statistics to their bounded size."""
        self.labels.trim()
        self.instructions.trim()
        self._trim_samples()

    def _trim_samples(self) -> None:
        self.samples = sorted(self.samples, key=lambda sample: sample[0])[:NUM_SAMPLES]


def report_keys(triple: Triple) -> tuple[str, str]:
    """(instruction, answer) to count a row by. The instruction is empty without an input, the answer if it is long."""
    instruction = triple.instruction if triple.input else ""
    if len(instruction) > MAX_KEY_CHARACTERS:
        digest = hashlib.blake2b(instruction.encode(), digest_size=4).hexdigest()
        instruction = f"{instruction[:MAX_KEY_CHARACTERS]}… [{digest}]"
    answer = triple.output.strip()
    return instruction, answer if len(answer) <= MAX_LABEL_CHARACTERS else ""


def round_length(length: int) -> int:
    """Round a length down to `LENGTH_BITS` binary digits."""
    shift = max(0, length.bit_length() - LENGTH_BITS)
    return length >> shift << shift
