"""The prompts of the arms, and the choice of few-shot examples."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.arms import choose_few_shot_examples, make_arms
from tests.fakes import ray_is_running

ROW = Triple("t", "Rate this.", "the shop is slow", "Medium")
TUNED_DIR = Path("tuned")


@pytest.mark.usefixtures("ray_4_cpus")
def test_examples_are_training_rows_with_different_outputs(make_config: Callable[..., Config]) -> None:
    config = make_config()
    prepare(config, ray_is_running)
    examples = choose_few_shot_examples(open_run(config, "evaluate"))
    assert {row.output for row in examples} == {"High", "Medium", "Low"}
    assert not any(row.assign_split(config.data.test_fraction) == "test" for row in examples)
    assert examples == choose_few_shot_examples(open_run(config, "evaluate"))


@pytest.mark.usefixtures("ray_4_cpus")
def test_number_of_examples_is_num_few_shot(make_config: Callable[..., Config]) -> None:
    prepare(make_config(), ray_is_running)
    for count in (1, 2, 5):
        run = open_run(make_config(evidence={"num_few_shot": count}), "evaluate")
        assert len({row.id for row in choose_few_shot_examples(run)}) == count


@pytest.mark.usefixtures("ray_4_cpus")
def test_near_duplicates_of_held_out_rows_are_not_examples(make_config: Callable[..., Config]) -> None:
    config = make_config(data={"near_duplicates": 0.8})
    row_counts = prepare(config, ray_is_running).dataset.manifest["fates"]
    assert row_counts["near_duplicate"] > 0
    # More than there are training rows, so that all of them are chosen.
    num_few_shot = 64
    run = open_run(make_config(data={"near_duplicates": 0.8}, evidence={"num_few_shot": num_few_shot}), "evaluate")
    assert len(choose_few_shot_examples(run)) == row_counts["trained"]


def test_examples_come_after_the_system_message_of_a_row(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    row = Triple("t", "And now?", "", "Low", system="You are blunt.", history=(("It is down.", "High"),))
    _, few_shot, _ = make_arms(renderer, base_folder, TUNED_DIR, [row], [Triple("a", "Rate this.", "x1", "Medium")])
    text = renderer.tokenizer.decode(few_shot.prompts[0])
    positions = [text.index(part) for part in ("You are blunt.", "x1", "It is down.", "And now?")]
    assert positions == sorted(positions)


def test_few_shot_prompts_contain_the_examples_as_turns(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    examples = [Triple("a", "Rate this.", "all is lost", "High")]
    zero_shot, few_shot, tuned = make_arms(renderer, base_folder, TUNED_DIR, [ROW], examples)
    assert zero_shot.prompts == tuned.prompts
    assert (zero_shot.model_dir, tuned.model_dir) == (base_folder, TUNED_DIR)
    text = renderer.tokenizer.decode(few_shot.prompts[0])
    assert text.index("all is lost") < text.index("High") < text.index("the shop is slow")
    assert "Medium" not in text
