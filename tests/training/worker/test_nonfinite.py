"""A loss or gradient that is no number never reaches the weights, and is never silent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.tune import tune
from tests.fakes import no_start, say_nothing
from tests.training.processes import run_ranks

# Not in the tokenizer's training text: its two bytes are tokens of their own.
RARE = "ω"


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, bool]]]:
    """What four steps did, by stage and precision."""
    [found] = run_ranks("tests.training.worker.nonfinite_probe", 1, tmp_path_factory.mktemp("tried"))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_such_a_step_is_left_out_at_every_stage(
    stage: int, precision: str, tried: dict[str, list[dict[str, bool]]]
) -> None:
    steps = tried[f"{stage}-{precision}"]
    assert [step["applied"] for step in steps] == [True, False, False, True]
    assert [step["changed"] for step in steps] == [True, False, False, True]
    assert all(step["finite"] for step in steps)


@pytest.fixture
def poisoned(tmp_path: Path, base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A base that answers text with the rare letter with NaN."""
    torch.manual_seed(0)
    # Untied: else every answer would be NaN.
    config = AutoConfig.from_pretrained(base_folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer(RARE, add_special_tokens=False).input_ids] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    return str(tmp_path / "poisoned")


@pytest.fixture
def rows(tmp_path: Path, triples_file: Path) -> Callable[[int], Path]:
    """Triples of which so many hold the rare letter."""

    def make(count: int) -> Path:
        lines = [json.loads(line) for line in triples_file.read_text().splitlines()]
        for line in lines[:count]:
            line["output"] = f"{RARE} {line['output']}"
        path = tmp_path / f"rows-{count}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return make


def lines_of(config: Config) -> list[dict[str, object]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


@pytest.mark.usefixtures("ray_4_cpus")
def test_the_rows_of_a_step_left_out_are_named(
    make_config: Callable[..., Config], poisoned: str, rows: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    train = {"zero_stage": 3, "examples_per_step": 12, "epochs": 2}
    config = make_config(model={"base": poisoned}, data={"sources": [rows(1)], "test_fraction": 0.05}, train=train)
    prepare(config, no_start)
    tune(config, say_nothing, no_start)
    lines = lines_of(config)
    left_out = [line for line in lines if not line["was_applied"]]
    assert len(left_out) == 2
    assert all(line["loss"] is None for line in left_out)
    assert all(line["was_applied"] for line in lines if line["loss"] is not None)
    assert f"step {left_out[0]['step']} left out: loss nan" in caplog.text
    # The first row of the only file.
    assert "0:0" in caplog.text
    assert (
        sum(int(str(line["examples"])) for line in lines) == 2 * find_packs(RunFolder.from_config(config)).num_examples
    )
    state = AutoModelForCausalLM.from_pretrained(RunFolder.from_config(config).model_dir).get_output_embeddings().weight
    assert state.isfinite().all()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_too_many_in_a_row_stop_the_run(
    make_config: Callable[..., Config], poisoned: str, rows: Callable[[int], Path]
) -> None:
    train = {"zero_stage": 1, "num_workers": 1, "examples_per_step": 4, "max_nonfinite_steps": 2, "max_failures": 3}
    config = make_config(model={"base": poisoned}, data={"sources": [rows(64)], "test_fraction": 0.05}, train=train)
    prepare(config, no_start)
    with pytest.raises(RuntimeError, match="training stopped: 2 steps in a row were left out, the last: step 2"):
        tune(config, say_nothing, no_start)
    # Once: another attempt would end the same way.
    assert [line["step"] for line in lines_of(config)] == [1, 2]
    assert not RunFolder.from_config(config).model_dir.exists()
