"""Prompts of the arms."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.arms import choose_few_shot_examples, make_arms
from tests.fakes import no_start

ROW = Triple("t", "Rate this.", "the shop is slow", "Medium")


@pytest.mark.usefixtures("ray_4_cpus")
def test_examples_are_training_rows_with_different_outputs(make_config: Callable[..., Config]) -> None:
    config = make_config()
    prepare(config, no_start)
    chosen = choose_few_shot_examples(open_run(config, "evaluate"))
    assert {row.output for row in chosen} == {"High", "Medium", "Low"}
    assert not any(row.assign_split(config.data.test_fraction) == "test" for row in chosen)
    assert chosen == choose_few_shot_examples(open_run(config, "evaluate"))


@pytest.mark.usefixtures("ray_4_cpus")
def test_as_many_as_asked_for(make_config: Callable[..., Config]) -> None:
    prepare(make_config(), no_start)
    for count in (1, 2, 5):
        chosen = choose_few_shot_examples(open_run(make_config(evidence={"num_few_shot": count}), "evaluate"))
        assert len({row.id for row in chosen}) == count


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_near_duplicate_of_a_held_out_row_is_never_shown(make_config: Callable[..., Config]) -> None:
    config = make_config(data={"near_duplicates": 0.8})
    dataset = prepare(config, no_start).dataset
    assert dataset.manifest["fates"]["near_duplicate"] > 0
    # Its fate is in the ledger, and examples are taken from the rows trained on.
    few = make_config(data={"near_duplicates": 0.8}, evidence={"num_few_shot": 64})
    assert len(choose_few_shot_examples(open_run(few, "evaluate"))) == dataset.manifest["fates"]["trained"]


def test_examples_come_behind_a_rows_own_system_message(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    row = Triple("t", "And now?", "", "Low", system="You are blunt.", history=(("It is down.", "High"),))
    _, few_shot, _ = make_arms(renderer, base_folder, Path("tuned"), [row], [Triple("a", "Rate this.", "x1", "Medium")])
    text = renderer.tokenizer.decode(few_shot.prompts[0])
    places = [text.index(part) for part in ("You are blunt.", "x1", "It is down.", "And now?")]
    assert places == sorted(places)


def test_few_shot_prompts_show_the_examples_as_turns(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    examples = [Triple("a", "Rate this.", "all is lost", "High")]
    zero_shot, few_shot, tuned = make_arms(renderer, base_folder, Path("tuned"), [ROW], examples)
    assert zero_shot.prompts == tuned.prompts
    assert (zero_shot.folder, tuned.folder) == (base_folder, Path("tuned"))
    text = renderer.tokenizer.decode(few_shot.prompts[0])
    assert text.index("all is lost") < text.index("High") < text.index("the shop is slow")
    assert "Medium" not in text
