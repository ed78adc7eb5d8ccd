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
from instruct_ray.training.model.load import DTYPES
from tests.fakes import ignore_status, ray_is_running
from tests.training.driver.test_tune import read_metrics
from tests.training.processes import run_ranks
from tests.training.worker.nonfinite_probe import STAGES

# Not in the text that the tokenizer was trained on, so each of its two bytes is a token of its own.
RARE = "ω"


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        # Each starts a process and up to six engines.
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("optimizer", "parameters", "both")),
    ],
)
def test_nonfinite_step_is_skipped_at_every_stage(kind: str, tmp_path: Path) -> None:
    """In both precisions, and wherever the optimizer and the weights are kept."""
    [steps_by_engine] = run_ranks("tests.training.worker.nonfinite_probe", 1, tmp_path, kind)
    assert steps_by_engine.keys() == {f"{stage}-{precision}" for stage in STAGES[kind] for precision in DTYPES}
    for engine, steps in steps_by_engine.items():
        assert [step["applied"] for step in steps] == [True, False, False, True], engine
        assert [step["changed"] for step in steps] == [True, False, False, True], engine
        assert all(step["finite"] for step in steps), engine


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
