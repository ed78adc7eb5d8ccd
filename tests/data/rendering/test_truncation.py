"""Rows that are too long are dropped or have their input truncated; answers are never truncated."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_ray.config.data import DataConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow, TooLongRow, fit_to_limit
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple

LIMIT = 40


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


def fit_row(renderer: Renderer, triple: Triple, **options: Any) -> FittedRow | TooLongRow | RowError:
    data = DataConfig.model_validate({"sources": ["x"], "max_tokens": LIMIT, **options})
    [result] = fit_to_limit(renderer, ["0:0"], [triple], data)
    return result


def count_tokens(renderer: Renderer, triple: Triple) -> int:
    row = fit_row(renderer, triple, max_tokens=10**6, pack_tokens=10**6)
    assert isinstance(row, FittedRow)
    return row.num_tokens


def test_limits_are_exact(renderer: Renderer) -> None:
    triple = Triple("a", "Rate", "search is slow", "High")
    size = count_tokens(renderer, triple)
    for limit in ({"max_tokens": size - 1}, {"pack_tokens": size - 2}):
        assert fit_row(renderer, triple, **{"max_tokens": size, "pack_tokens": size, **limit}) == TooLongRow(size)
    # The model never reads the stop token, so the row needs one token less of a pack.
    row = fit_row(renderer, triple, max_tokens=size, pack_tokens=size - 1)
    assert isinstance(row, FittedRow) and row.num_tokens == size and not row.was_truncated


inputs = st.lists(
    st.one_of(
        st.sampled_from(["search is slow ", "  \n", "é", "日本", "😀", "<|im_end|>", "\ue000"]), st.text(max_size=5)
    ),
    min_size=30,
    max_size=60,
).map("".join)


@settings(deadline=None)
@given(inputs)
def test_truncation_shortens_only_the_input_and_as_little_as_possible(renderer: Renderer, text: str) -> None:
    triple = Triple("a", "Rate this.", text, "a typo on the page")
    row = fit_row(renderer, triple, too_long="cut")
    if isinstance(row, RowError) or (isinstance(row, FittedRow) and not row.was_truncated):
        return
    assert isinstance(row, FittedRow), "there is room for some of the input"
    assert row.original == triple
    assert text.startswith(row.triple.input) and row.triple.input.strip()
    assert row.triple == Triple("a", "Rate this.", row.triple.input, triple.output)
    [example] = row.examples
    assert list(example.completion_ids) == list(renderer.completion(triple.output))
    assert list(example.prompt_ids) == list(renderer.prompt(renderer.messages("Rate this.", row.triple.input)))
    # Full up to a character or the white space at the end, which may be many tokens.
    kept = row.triple.input
    rest = text[len(kept) :]
    longer = kept + rest[: len(rest) - len(rest.lstrip()) + 2]
    assert example.num_tokens <= LIMIT < count_tokens(renderer, Triple("a", "Rate this.", longer, triple.output)) + 3


@pytest.mark.parametrize("character", ["😀", "日", "é"])
def test_truncation_does_not_split_a_character_of_several_tokens(renderer: Renderer, character: str) -> None:
    for num_extra in range(5):
        row = fit_row(renderer, Triple("a", "Rate" + "?" * num_extra, character * 60, "High"), too_long="cut")
        assert isinstance(row, FittedRow) and set(row.triple.input) == {character}


@pytest.mark.parametrize(
    "triple",
    [
        Triple("a", "Rate this. " * 20, "", "High"),
        Triple("a", "Rate this. " * 20, "x", "High"),
        Triple("a", "Rate", "x", "High " * 40),
        Triple("a", "Rate", "search is slow " * 20, "High", None, (("a", "b"),)),
    ],
)
@pytest.mark.parametrize("policy", ["drop", "cut"])
def test_row_that_can_not_be_truncated_is_too_long(renderer: Renderer, triple: Triple, policy: str) -> None:
    row = fit_row(renderer, triple, too_long=policy)
    assert isinstance(row, TooLongRow) and row.num_tokens > LIMIT


def test_too_long_rows_do_not_affect_the_others(renderer: Renderer) -> None:
    triples = [Triple(str(n), "Rate", "x" * (n % 2 * 200), "High") for n in range(6)]
    data = DataConfig.model_validate({"sources": ["x"], "max_tokens": LIMIT})
    rows = fit_to_limit(renderer, [triple.id for triple in triples], triples, data)
    assert [isinstance(row, FittedRow) for row in rows] == [True, False] * 3
    assert [row.examples[0].row_id for row in rows if isinstance(row, FittedRow)] == ["0", "2", "4"]


def test_rows_past_the_positions_of_the_model_are_named_with_their_number(renderer: Renderer) -> None:
    triple = Triple("a", "Rate", "search is slow", "High")
    size = count_tokens(renderer, triple)
    data = DataConfig.model_validate({"sources": ["x"], "max_tokens": size})
    # The model never reads the stop token.
    [fits], [error] = (fit_to_limit(renderer, ["a"], [triple], data, size - 1 - excess) for excess in (0, 1))
    assert isinstance(fits, FittedRow)
    assert isinstance(error, RowError) and error.reason == "no_position"
    assert error.detail.startswith(f"has {size} tokens, but the base model has only {size - 2} positions; ")
    assert f"data.max_tokens={size - 1} drops" in error.detail
    [cut] = fit_to_limit(renderer, ["a"], [triple], data.model_copy(update={"too_long": "cut"}), size - 2)
    assert isinstance(cut, FittedRow) and cut.was_truncated and cut.num_tokens < size
    [too_long] = fit_to_limit(renderer, ["a"], [triple], data.model_copy(update={"max_tokens": size - 1}), size - 2)
    assert too_long == TooLongRow(size)
