"""Rows -> examples no longer than the config allows; the answer and its stop token are never cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from instruct_ray.config.data import DataConfig
from instruct_ray.data.example import Example
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple

# Cutting text changes how its end is tokenised, so a cut may leave a token or two too many.
MAX_TRUNCATIONS = 8


@dataclass(frozen=True)
class FittedRow:
    """A row that fits."""

    triple: Triple
    """As it is trained: its input may be shorter than the source's."""
    original: Triple
    """As the source has it: decides whether it is held out, so that rows of one input, cut to lengths of their own, are
    on one side."""
    examples: list[Example]
    was_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of the row; of a chat, each turn once."""
        return sum(example.num_tokens - example.num_counted for example in self.examples)


@dataclass(frozen=True)
class TooLongRow:
    """A row that does not fit and was not made to."""

    num_tokens: int


def fit_to_limit(
    renderer: Renderer, row_ids: Sequence[str], triples: Sequence[Triple], data: DataConfig
) -> list[FittedRow | TooLongRow | RowError]:
    """Render rows, and cut or give up those that are too long, as `data.too_long` says."""
    results: list[FittedRow | TooLongRow | RowError] = []
    for row_id, triple, examples in zip(row_ids, triples, renderer.examples(row_ids, triples), strict=True):
        if isinstance(examples, RowError):
            results.append(examples)
        elif num_excess_tokens(examples, data) <= 0:
            results.append(FittedRow(triple, triple, examples, was_truncated=False))
        elif data.too_long == "cut" and triple.input and not triple.history:
            results.append(_truncate(renderer, row_id, triple, examples, data))
        else:
            results.append(TooLongRow(_longest(examples)))
    return results


def num_excess_tokens(examples: Sequence[Example], data: DataConfig) -> int:
    """Tokens that a row has too many. The stop token is never read, so a pack holds one token more than it computes."""
    return _longest(examples) - min(data.max_tokens, data.pack_tokens + 1)


def _longest(examples: Sequence[Example]) -> int:
    return max(example.num_tokens for example in examples)


def _truncate(
    renderer: Renderer, row_id: str, triple: Triple, examples: Sequence[Example], data: DataConfig
) -> FittedRow | TooLongRow:
    """Shorten the input from its end until the row fits."""
    num_tokens = _longest(examples)
    shorter = triple
    for _ in range(MAX_TRUNCATIONS):
        encoding = renderer.tokenizer(
            shorter.input, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        num_kept = len(encoding["input_ids"]) - num_excess_tokens(examples, data)
        if num_kept < 1:
            break
        # Where the first token too many begins: one that shares its character with the last one kept takes it along.
        shorter = replace(shorter, input=shorter.input[: encoding["offset_mapping"][num_kept][0]].rstrip())
        [rendered] = renderer.examples([row_id], [shorter])
        if isinstance(rendered, RowError) or not shorter.input:
            break
        examples = rendered
        if num_excess_tokens(examples, data) <= 0:
            return FittedRow(shorter, triple, list(examples), was_truncated=True)
    return TooLongRow(num_tokens)
