"""A non-finite loss or gradient never reaches the weights, and is always reported."""

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
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics
from tests.training.processes import run_ranks

# Not in the text that the tokenizer was trained on, so each of its two bytes is a token of its own.
RARE = "ω"


@pytest.fixture(scope="module")
def probed_steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, bool]]]:
    """What each of four steps did, by stage and precision."""
    [steps] = run_ranks("tests.training.worker.nonfinite_probe", 1, tmp_path_factory.mktemp("nonfinite"))
    return steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nonfinite_step_is_skipped_at_every_stage(
    stage: int, precision: str, probed_steps: dict[str, list[dict[str, bool]]]
) -> None:
    steps = probed_steps[f"{stage}-{precision}"]
    assert [step["applied"] for step in steps] == [True, False, False, True]
    assert [step["changed"] for step in steps] == [True, False, False, True]
    assert all(step["finite"] for step in steps)


@pytest.fixture
def nan_base(tmp_path: Path, base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A base model whose logits are NaN for text with the rare letter."""
    torch.manual_seed(0)
    # Untied, otherwise all logits would be NaN.
    config = AutoConfig.from_pretrained(base_folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer(RARE, add_special_tokens=False).input_ids] = float("nan")
    model.save_pretrained(tmp_path / "nan-base")
    tokenizer.save_pretrained(tmp_path / "nan-base")
    return str(tmp_path / "nan-base")


@pytest.fixture
def write_rows(tmp_path: Path, triples_file: Path) -> Callable[[int], Path]:
    """Writes triples whose first `num_rare` outputs hold the rare letter."""

    def write(num_rare: int) -> Path:
        rows = [json.loads(line) for line in triples_file.read_text().splitlines()]
        for row in rows[:num_rare]:
            row["output"] = f"{RARE} {row['output']}"
        path = tmp_path / f"rows-{num_rare}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.usefixtures("ray_4_cpus")
def test_rows_of_a_skipped_step_are_reported(
    make_config: Callable[..., Config],
    nan_base: str,
    write_rows: Callable[[int], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = {"zero_stage": 3, "examples_per_step": 12, "epochs": 2}
    data = {"sources": [write_rows(1)], "test_fraction": 0.05}
    config = make_config(model={"base": nan_base}, data=data, train=train)
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    records, folder = read_metrics(config), RunFolder.from_config(config)
    skipped = [record for record in records if not record["was_applied"]]
    assert len(skipped) == 2
    assert all(record["loss"] is None for record in skipped)
    assert all(record["was_applied"] for record in records if record["loss"] is not None)
    assert f"step {skipped[0]['step']} skipped: loss nan" in caplog.text
    # The id of the first row of the only file.
    assert "0:0" in caplog.text
    assert sum(record["examples"] for record in records) == 2 * find_packs(folder).num_examples
    head = AutoModelForCausalLM.from_pretrained(folder.model_dir).get_output_embeddings().weight
    assert head.isfinite().all()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_too_many_consecutive_skipped_steps_stop_the_run(
    make_config: Callable[..., Config], nan_base: str, write_rows: Callable[[int], Path]
) -> None:
    train = {"zero_stage": 1, "num_workers": 1, "examples_per_step": 4, "max_nonfinite_steps": 2, "max_failures": 3}
    data = {"sources": [write_rows(64)], "test_fraction": 0.05}
    config = make_config(model={"base": nan_base}, data=data, train=train)
    prepare(config, ray_is_running)
    with pytest.raises(
        RuntimeError, match="training stopped: 2 consecutive steps were skipped, the last: step 2 skipped"
    ):
        tune(config, ignore_status, ray_is_running)
    # Only once: a restart would end the same way.
    assert [record["step"] for record in read_metrics(config)] == [1, 2]
    assert not RunFolder.from_config(config).model_dir.exists()
