"""Rows -> examples no longer than the config allows; the answer and its stop token are never cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from instruct_ray.config import DataConfig
from instruct_ray.data.packing import Example
from instruct_ray.data.reading.records import RowError
from instruct_ray.data.reading.triples import Triple
from instruct_ray.data.rendering.renderer import Renderer

# Cutting text changes how its end is tokenised, so a cut may leave a token or two too many.
MAX_CUTS = 8


@dataclass(frozen=True)
class Fitted:
    """A row that fits."""

    triple: Triple
    """As it is trained: its input may be shorter than the source's."""
    original: Triple
    """As the source has it: decides whether it is held out, so that rows of one input, cut to lengths of their own, are
    on one side."""
    examples: list[Example]
    was_cut: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of the row; of a chat, each turn once."""
        return sum(example.num_tokens - example.num_counted for example in self.examples)


@dataclass(frozen=True)
class TooLong:
    """A row that does not fit and was not made to."""

    num_tokens: int


def fit(
    renderer: Renderer, row_ids: Sequence[str], triples: Sequence[Triple], data: DataConfig
) -> list[Fitted | TooLong | RowError]:
    """Render rows, and cut or give up those that are too long, as `data.too_long` says."""
    results: list[Fitted | TooLong | RowError] = []
    for row_id, triple, examples in zip(row_ids, triples, renderer.examples(row_ids, triples), strict=True):
        if isinstance(examples, RowError):
            results.append(examples)
        elif num_over(examples, data) <= 0:
            results.append(Fitted(triple, triple, examples, was_cut=False))
        elif data.too_long == "cut" and triple.input and not triple.history:
            results.append(_cut(renderer, row_id, triple, examples, data))
        else:
            results.append(TooLong(_longest(examples)))
    return results


def num_over(examples: Sequence[Example], data: DataConfig) -> int:
    """Tokens that a row has too many. The stop token is never read, so a pack holds one token more than it computes."""
    return _longest(examples) - min(data.max_tokens, data.pack_tokens + 1)


def _longest(examples: Sequence[Example]) -> int:
    return max(example.num_tokens for example in examples)


def _cut(
    renderer: Renderer, row_id: str, triple: Triple, examples: Sequence[Example], data: DataConfig
) -> Fitted | TooLong:
    """Shorten the input from its end until the row fits."""
    num_tokens = _longest(examples)
    shorter = triple
    for _ in range(MAX_CUTS):
        encoding = renderer.tokenizer(
            shorter.input, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        num_kept = len(encoding["input_ids"]) - num_over(examples, data)
        if num_kept < 1:
            break
        # Where the first token too many begins: one that shares its character with the last one kept takes it along.
        shorter = replace(shorter, input=shorter.input[: encoding["offset_mapping"][num_kept][0]].rstrip())
        [rendered] = renderer.examples([row_id], [shorter])
        if isinstance(rendered, RowError) or not shorter.input:
            break
        examples = rendered
        if num_over(examples, data) <= 0:
            return Fitted(shorter, triple, list(examples), was_cut=True)
    return TooLong(num_tokens)
