"""Rows that are too long: left out, or their input cut; the answer never."""

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


def fitted(renderer: Renderer, triple: Triple, **options: Any) -> FittedRow | TooLongRow | RowError:
    data = DataConfig.model_validate({"sources": ["x"], "max_tokens": LIMIT, **options})
    [result] = fit_to_limit(renderer, ["0:0"], [triple], data)
    return result


def size_of(renderer: Renderer, triple: Triple) -> int:
    found = fitted(renderer, triple, max_tokens=10**6, pack_tokens=10**6)
    assert isinstance(found, FittedRow)
    return found.num_tokens


def test_the_limits_hold_exactly(renderer: Renderer) -> None:
    triple = Triple("a", "Rate", "search is slow", "High")
    size = size_of(renderer, triple)
    for over in ({"max_tokens": size - 1}, {"pack_tokens": size - 2}):
        assert fitted(renderer, triple, **{"max_tokens": size, "pack_tokens": size, **over}) == TooLongRow(size)
    # The stop token is predicted, never read: a pack computes one token less than it holds.
    fits = fitted(renderer, triple, max_tokens=size, pack_tokens=size - 1)
    assert isinstance(fits, FittedRow) and fits.num_tokens == size and not fits.was_truncated


inputs = st.lists(
    st.one_of(
        st.sampled_from(["search is slow ", "  \n", "é", "日本", "😀", "<|im_end|>", "\ue000"]), st.text(max_size=5)
    ),
    min_size=30,
    max_size=60,
).map("".join)


@settings(deadline=None)
@given(inputs)
def test_a_cut_input_fits_and_nothing_else_is_lost(renderer: Renderer, text: str) -> None:
    triple = Triple("a", "Rate this.", text, "a typo on the page")
    found = fitted(renderer, triple, too_long="cut")
    if isinstance(found, RowError) or (isinstance(found, FittedRow) and not found.was_truncated):
        return
    assert isinstance(found, FittedRow), "there is room for some of the input"
    assert found.original == triple
    assert text.startswith(found.triple.input) and found.triple.input.strip()
    assert found.triple == Triple("a", "Rate this.", found.triple.input, triple.output)
    [example] = found.examples
    assert list(example.completion_ids) == list(renderer.completion(triple.output))
    assert list(example.prompt_ids) == list(renderer.prompt(renderer.messages("Rate this.", found.triple.input)))
    # Full up to a character or the blanks at the end, which may be many tokens.
    kept = found.triple.input
    rest = text[len(kept) :]
    more = kept + rest[: len(rest) - len(rest.lstrip()) + 2]
    assert example.num_tokens <= LIMIT < size_of(renderer, Triple("a", "Rate this.", more, triple.output)) + 3


@pytest.mark.parametrize("character", ["😀", "日", "é"])
def test_a_character_of_many_tokens_is_cut_whole(renderer: Renderer, character: str) -> None:
    for pad in range(5):
        found = fitted(renderer, Triple("a", "Rate" + "?" * pad, character * 60, "High"), too_long="cut")
        assert isinstance(found, FittedRow) and set(found.triple.input) == {character}


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
def test_what_can_not_be_cut_is_left_out(renderer: Renderer, triple: Triple, policy: str) -> None:
    found = fitted(renderer, triple, too_long=policy)
    assert isinstance(found, TooLongRow) and found.num_tokens > LIMIT


def test_good_rows_beside_long_ones_are_kept(renderer: Renderer) -> None:
    rows = [Triple(str(n), "Rate", "x" * (n % 2 * 200), "High") for n in range(6)]
    data = DataConfig.model_validate({"sources": ["x"], "max_tokens": LIMIT})
    found = fit_to_limit(renderer, [row.id for row in rows], rows, data)
    assert [isinstance(result, FittedRow) for result in found] == [True, False] * 3
    assert [result.examples[0].row_id for result in found if isinstance(result, FittedRow)] == ["0", "2", "4"]
