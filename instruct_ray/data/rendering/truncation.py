"""Renders rows as examples within the length limits. An answer and its stop token are never truncated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from instruct_ray.config.data import DataConfig
from instruct_ray.data.example import Example
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple

# A shorter text can tokenize differently at its end, so a truncation may leave a token or two too many.
MAX_TRUNCATIONS = 8


@dataclass(frozen=True)
class FittedRow:
    """A row whose examples are within the limits."""

    triple: Triple
    """The row as it is trained on: its input may be truncated."""
    original: Triple
    """The row as in the source. It decides the split, so that rows with the same input are in one split even if their
    inputs are truncated to different lengths."""
    examples: list[Example]
    was_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the row; those that examples of a chat share count once."""
        return sum(example.num_tokens - example.num_counted for example in self.examples)


@dataclass(frozen=True)
class TooLongRow:
    """A row that exceeds the limits and was not truncated."""

    num_tokens: int
    """Length of its longest example."""


def fit_to_limit(
    renderer: Renderer,
    row_ids: Sequence[str],
    triples: Sequence[Triple],
    data: DataConfig,
    max_positions: int | None = None,
) -> list[FittedRow | TooLongRow | RowError]:
    """Render rows; those that are too long are truncated if `data.too_long` allows it and they have an input.

    A row within `data.max_tokens` that the base model can't read, since it has only `max_positions` positions, is an
    error.
    """
    # The model never reads the stop token, so an example may be one token longer than a pack, or than its positions.
    requested = min(data.max_tokens, data.pack_tokens + 1)
    limit = requested if max_positions is None else min(requested, max_positions + 1)
    results: list[FittedRow | TooLongRow | RowError] = []
    for row_id, triple, examples in zip(row_ids, triples, renderer.examples(row_ids, triples), strict=True):
        if isinstance(examples, RowError):
            results.append(examples)
        elif (num_tokens := _max_tokens(examples)) <= limit:
            results.append(FittedRow(triple, triple, examples, was_truncated=False))
        elif data.too_long == "cut" and triple.input and not triple.history:
            results.append(_truncate(renderer, row_id, triple, examples, limit))
        elif num_tokens <= requested:
            results.append(_no_position_error(num_tokens, limit))
        else:
            results.append(TooLongRow(num_tokens))
    return results


def _no_position_error(num_tokens: int, limit: int) -> RowError:
    return RowError(
        "no_position",
        f"has {num_tokens} tokens, but the base model has only {limit - 1} positions; data.max_tokens={limit} drops "
        "such rows, and data.too_long=cut truncates their inputs",
    )


def _max_tokens(examples: Sequence[Example]) -> int:
    return max(example.num_tokens for example in examples)


def _truncate(
    renderer: Renderer, row_id: str, triple: Triple, examples: Sequence[Example], limit: int
) -> FittedRow | TooLongRow:
    """Truncate the input at its end until the longest example has at most `limit` tokens."""
    too_long = TooLongRow(_max_tokens(examples))
    truncated = triple
    for _ in range(MAX_TRUNCATIONS):
        encoding = renderer.tokenizer(
            truncated.input, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        num_kept = len(encoding["input_ids"]) - (_max_tokens(examples) - limit)
        if num_kept < 1:
            return too_long
        # A character that the first removed token shares with the last kept one is removed as a whole.
        end = encoding["offset_mapping"][num_kept][0]
        truncated = replace(truncated, input=truncated.input[:end].rstrip())
        [rendered] = renderer.examples([row_id], [truncated])
        if isinstance(rendered, RowError) or not truncated.input:
            return too_long
        examples = rendered
        if _max_tokens(examples) <= limit:
            return FittedRow(truncated, triple, list(examples), was_truncated=True)
    return too_long
