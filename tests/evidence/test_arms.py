"""Prompts of the arms."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config import Config
from instruct_ray.data.templates import make_renderer
from instruct_ray.data.triples import Triple
from instruct_ray.evidence.arms import choose_examples, make_arms

ROW = Triple("t", "Rate this.", "the shop is slow", "Medium")


def test_examples_are_training_rows_with_different_outputs(make_config: Callable[..., Config]) -> None:
    config = make_config()
    chosen = choose_examples(config)
    assert {row.output for row in chosen} == {"High", "Medium", "Low"}
    assert not any(row.is_test(config.data.test_fraction) for row in chosen)
    assert chosen == choose_examples(config)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_as_asked_for(make_config: Callable[..., Config], count: int) -> None:
    chosen = choose_examples(make_config(evidence={"num_few_shot": count}))
    assert len({row.id for row in chosen}) == count


def test_few_shot_prompts_show_the_examples_as_turns(base_folder: Path) -> None:
    renderer = make_renderer(base_folder, None)
    examples = [Triple("a", "Rate this.", "all is lost", "High")]
    zero_shot, few_shot, tuned = make_arms(renderer, base_folder, Path("tuned"), [ROW], examples)
    assert zero_shot.prompts == tuned.prompts
    assert (zero_shot.folder, tuned.folder) == (base_folder, Path("tuned"))
    text = renderer.tokenizer.decode(few_shot.prompts[0])
    assert text.index("all is lost") < text.index("High") < text.index("the shop is slow")
    assert "Medium" not in text
