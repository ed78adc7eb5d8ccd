"""The prompts of the arms, what fits into them, and the choice of few-shot examples."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Additions, Arm, LocalModel, check_prompts_fit, make_arms, make_champion_arm
from instruct_ray.evidence.examples import choose_examples, load_candidates
from instruct_ray.evidence.limits import describe_limits, describe_sample, limit_answers
from instruct_ray.evidence.prompts import few_shot_prompt, zero_shot_prompts
from instruct_ray.inference.engine_actor import EngineActor
from instruct_ray.run.folder import RunFolder
from tests.data.rendering.families import make_word_renderer
from tests.fakes import ray_is_running

ROW = Triple("t", "Rate this.", "the shop is slow", "Medium")
ROWS = [Triple("short", "Rate this.", "slow", "Low"), Triple("long", "Rate this.", "down " * 10, "High")]
EXAMPLES = [Triple(str(number), "Rate this.", "a typo on the page", "Low") for number in range(3)]


@pytest.fixture
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


def make_model(renderer: Renderer, name: str = "base", context: int = 512) -> LocalModel:
    return LocalModel(name, Path(name), renderer, context, name, 0)


def arms_of(
    renderer: Renderer, rows: list[Triple], additions: Additions, context: int = 512, **options: object
) -> tuple[dict[str, Arm], list[str]]:
    """The arms by name, and the notes."""
    models = [make_model(renderer, name, context) for name in ("base", "tuned")]
    evidence = EvidenceConfig.model_validate({"max_new_tokens": 4, **options})
    arms, notes = make_arms(models[0], models[1], rows, additions, evidence)
    return {arm.name: arm for arm in arms}, notes


@pytest.mark.usefixtures("ray_4_cpus")
def test_examples_are_training_rows_with_different_outputs(make_config: Callable[..., Config]) -> None:
    config = make_config()
    prepare(config, ray_is_running)
    candidates = load_candidates(open_run(config, "evaluate"))
    [examples] = choose_examples(candidates, [ROW], config.evidence)
    assert {row.output for row in examples} == {"High", "Medium", "Low"}
    assert not any(row.assign_split(config.data.test_fraction) == "test" for row in candidates)
    # A run that was prepared before candidates were written down has the same ones: all rows are sampled there.
    RunFolder.from_config(config).few_shot_file.unlink()
    assert load_candidates(open_run(config, "evaluate")) == candidates


@pytest.mark.usefixtures("ray_4_cpus")
def test_near_duplicates_of_held_out_rows_are_no_candidates(make_config: Callable[..., Config]) -> None:
    config = make_config(data={"near_duplicates": 0.8})
    row_counts = prepare(config, ray_is_running).dataset.manifest["fates"]
    assert row_counts["near_duplicate"] > 0
    assert len(load_candidates(open_run(config, "evaluate"))) == row_counts["trained"]


def test_nearest_examples_are_those_most_similar_to_each_row() -> None:
    candidates = [
        Triple("a", "Rate.", "printer jams", "Low"),
        Triple("b", "Rate.", "the shop is down", "High"),
        Triple("c", "Rate.", "the shop looks nice", "Low"),
    ]
    evidence = EvidenceConfig(num_few_shot=(1, 2), few_shot_choice="nearest")
    rows = [Triple("x", "Rate.", "is the shop down?", ""), Triple("y", "Rate.", "printer on fire", "")]
    first, second = choose_examples(candidates, rows, evidence)
    assert [row.id for row in first] == ["b", "c"] and second[0].id == "a"


def test_examples_come_after_the_system_message_of_a_row(renderer: Renderer) -> None:
    row = Triple("t", "And now?", "", "Low", system="You are blunt.", history=(("It is down.", "High"),))
    prompt = few_shot_prompt(renderer, row, [Triple("a", "Rate this.", "x1", "Medium")])
    text = renderer.tokenizer.decode(prompt)
    positions = [text.index(part) for part in ("You are blunt.", "x1", "It is down.", "And now?")]
    assert positions == sorted(positions)


def test_few_shot_arms_have_the_examples_as_turns(renderer: Renderer) -> None:
    examples = [Triple("a", "Rate this.", "all is lost", "High"), Triple("b", "Rate this.", "minor", "Low")]
    arms, notes = arms_of(renderer, [ROW], Additions([examples]), num_few_shot=[1, 2])
    assert list(arms) == ["zero_shot", "few_shot_1", "few_shot_2", "tuned"] and not notes
    assert arms["zero_shot"].prompts == arms["tuned"].prompts
    assert [arm.model.name for arm in arms.values()] == ["base", "base", "base", "tuned"]
    text = renderer.tokenizer.decode(arms["few_shot_2"].prompts[0])
    # The best example is the last one, next to the row.
    positions = [text.index(part) for part in ("minor", "all is lost", "High", "the shop is slow")]
    assert positions == sorted(positions) and "Medium" not in text
    assert "minor" not in renderer.tokenizer.decode(arms["few_shot_1"].prompts[0])
    assert list(arms_of(renderer, [ROW], Additions([[]]), num_few_shot=0)[0]) == ["zero_shot", "tuned"]


def test_passages_go_into_the_prompts_of_base_and_tuned_model(renderer: Renderer) -> None:
    arms, notes = arms_of(renderer, [ROW], Additions([[]], [["Shops open at nine.", "x"]]), num_few_shot=0)
    assert list(arms) == ["zero_shot", "rag", "tuned", "tuned_rag"] and not notes
    assert arms["rag"].prompts == arms["tuned_rag"].prompts
    assert (arms["rag"].kind, arms["tuned_rag"].kind) == ("prompting", "tuned")
    text = renderer.tokenizer.decode(arms["rag"].prompts[0])
    assert text.index("Shops open at nine.") < text.index("the shop is slow")
    context = len(arms["rag"].prompts[0]) + 3
    short, notes = arms_of(renderer, [ROW], Additions([[]], [["Shops open at nine.", "x"]]), context, num_few_shot=0)
    assert len(short["rag"].prompts[0]) < len(arms["rag"].prompts[0])
    assert notes == [
        f"rag and tuned_rag have fewer than 3 passages in 1 of 1 prompts: more don't fit into the model's context of "
        f"{context}"
    ]


def test_an_example_that_does_not_fit_does_not_hide_the_others(renderer: Renderer) -> None:
    examples = [EXAMPLES[0], Triple("x", "Rate this.", "down " * 60, "High"), EXAMPLES[1]]
    context = len(few_shot_prompt(renderer, ROWS[1], EXAMPLES[:2])) + 4
    arms, [note] = arms_of(renderer, ROWS, Additions([examples] * 2), context)
    assert arms["few_shot_3"].prompts[1] == few_shot_prompt(renderer, ROWS[1], [examples[0], examples[2]])
    assert note.startswith("few_shot_3 has 2 to 2 examples in 2 of 2 prompts")


def test_examples_keep_their_earlier_turns(renderer: Renderer) -> None:
    example = Triple("a", "And now?", "", "Medium", system="Be kind.", history=(("It is down.", "High"),))
    text = renderer.tokenizer.decode(few_shot_prompt(renderer, ROW, [example]))
    positions = [text.index(part) for part in ("It is down.", "High", "And now?", "Medium", "the shop is slow")]
    assert positions == sorted(positions) and "Be kind." not in text


def test_rejected_prompts_are_named_by_arm_row_and_remedy(tmp_path: Path) -> None:
    renderer = make_word_renderer(tmp_path)
    bad = Triple("bad", "Rate this.", "服务", "Low")
    with pytest.raises(
        InputError, match=r"^few_shot_3: the prompt of test row t: has characters.*; set evidence\.num_few_shot=0$"
    ):
        arms_of(renderer, [ROW], Additions([[bad]]))
    with pytest.raises(InputError, match=r"^champion: the prompt of test row bad: .*evidence\.compare_champion=false"):
        make_champion_arm(make_model(renderer, "champion"), "3", [bad])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_each_prompt_has_as_many_examples_as_fit(renderer: Renderer, count: int) -> None:
    context = len(few_shot_prompt(renderer, ROWS[1], EXAMPLES[:count])) + 4
    arms, notes = arms_of(renderer, ROWS, Additions([EXAMPLES] * 2), context)
    assert arms["few_shot_3"].prompts[1] == few_shot_prompt(renderer, ROWS[1], EXAMPLES[:count])
    assert bool(notes) == (count < 3)
    if notes:
        assert notes[0].startswith(f"few_shot_3 has {count} to ") and f"context of {context}" in notes[0]


def test_prompt_without_room_for_an_answer_is_refused_by_row(renderer: Renderer) -> None:
    length = max(map(len, zero_shot_prompts(renderer, ROWS, "zero_shot", "")))
    for context, is_refused in ((length + 1, False), (length, True)):
        arms, _ = arms_of(renderer, ROWS, Additions([[], []]), context, num_few_shot=0)
        if not is_refused:
            check_prompts_fit(list(arms.values()), ROWS)
            continue
        message = rf"zero_shot: the prompt of test row long has {length} tokens.*{length}"
        with pytest.raises(InputError, match=message):
            check_prompts_fit(list(arms.values()), ROWS)


def test_answers_end_with_learned_positions(
    tokenizer: PreTrainedTokenizerFast, renderer: Renderer, tmp_path: Path
) -> None:
    """GPT-2 fails on the first token past its positions: an answer ends before it, whatever the batch."""
    prompts = zero_shot_prompts(renderer, ROWS, "zero_shot", "")
    context = max(map(len, prompts)) + 2
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=4, n_positions=context)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    limits = limit_answers(prompts, context, 8)
    assert [limit.max_new_tokens for limit in limits] == [8, 2]
    actor = EngineActor(tmp_path, renderer.contract, ServingConfig())
    for num_at_once in (None, 1):
        answers, _ = actor.generate(prompts, limits, num_at_once)
        assert [len(answer.token_ids) for answer in answers] == [8, 2]


def test_cut_answers_and_outputs_that_are_too_long_are_noted(renderer: Renderer) -> None:
    num_tokens = len(renderer.completion("High")) - 1
    assert describe_limits(renderer, ROWS, {"zero_shot": 0, "tuned": 0}, num_tokens) == []
    rows = [Triple("a", "x", "", "High " * 20), *ROWS]
    expected = len(renderer.completion("High " * 20)) - 1
    cut, longer = describe_limits(renderer, rows, {"tuned": 2}, 16)
    assert cut == "cut at evidence.max_new_tokens=16: 2 of 3 answers of tuned"
    assert f"1 of 3 expected outputs are longer than evidence.max_new_tokens=16 (up to {expected} tokens)" in longer


def test_a_sample_of_the_rows_is_noted_with_its_interval() -> None:
    assert describe_sample(100, 100, 2000) == []
    [note] = describe_sample(2000, 9000, 2000)
    assert "2000 of 9000 held-out rows" in note and "±2.2 points" in note
