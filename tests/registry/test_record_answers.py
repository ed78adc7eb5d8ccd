"""Recording answers of a run's model and its base: real tiny models, in this process and in a Ray task."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.files import atomic_write_json
from instruct_ray.inference.recorded_answers import LiveAnswer, RecordedAnswers, check_live_answers
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.record_answers import Prompt, answer_prompts, record_answers
from instruct_ray.registry.register import register
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, make_run


def write_model(run: OpenRun, tokenizer: PreTrainedTokenizerFast, base: Path, scale: float) -> None:
    """Make the run's model the base with weights of another scale, and write 20 held-out rows."""
    folder = run.folder
    (folder.model_dir / "model.safetensors").unlink()
    model = load_causal_lm(base, "auto")
    model.model.norm.weight.data *= scale
    model.model.layers[0].mlp.down_proj.weight.data *= scale
    model.save_pretrained(folder.model_dir)
    tokenizer.save_pretrained(folder.model_dir)
    contract = derive_renderer(base, None).contract
    contract.save(folder.model_dir / "contract.json")
    metadata = json.loads((folder.model_dir / MODEL_METADATA_FILE).read_text())
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, metadata | {"contract_digest": contract.digest})
    rows = [Triple(f"0:{number}", "Rate this.", f"report {number} of the day", "High") for number in range(20)]
    rows.append(Triple("0:20", "Rate this.", "too long " * 400, "High"))
    folder.test_rows_file.write_text("".join(json.dumps(row.dump()) + "\n" for row in rows))


@pytest.fixture
def make(storage: Path, base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[float], Config]:
    """Makes a run of the tiny model, whose weights tuning changed by a factor."""

    def make(scale: float) -> Config:
        shutil.copytree(base_folder, storage / "base")
        config = make_run(storage, model={"base": str(storage / "base")})
        write_model(open_run(config, "register"), tokenizer, storage / "base", scale)
        return config

    return make


def test_version_holds_answers_that_a_live_check_reproduces(
    make: Callable[[float], Config], registry: ModelRegistry, tmp_path: Path, ray_4_cpus: None
) -> None:
    config = make(1.5)
    started: list[bool] = []
    record = partial(record_answers, start_ray=lambda: started.append(True))
    version = register(config, ignore_status, record).version
    folder = registry.fetch(version, tmp_path)
    recorded = RecordedAnswers.load(folder)
    assert recorded is not None and recorded.has_base and not recorded.is_like_base
    assert len(recorded.rows) >= 15 and recorded.dtype == "float32"
    assert "recorded_answers.json" in json.loads((folder / "manifest.json").read_text())["files"]

    # As an endpoint answers that loaded the version, or its base.
    run, base = open_run(config, "register"), config.run.storage / "base"
    prompts = [Prompt(row.row_id, row.prompt_ids) for row in recorded.rows]
    contract = derive_renderer(base, None).contract
    for model_dir, outcome in ((folder, "reproduced"), (base, "base")):
        _, rows = answer_prompts(model_dir, None, contract, prompts)
        live = [LiveAnswer(row.tuned.token_ids, row.tuned.log_probs) for row in rows]
        assert check_live_answers(recorded, live).outcome == outcome
    # Kept: nothing is computed again.
    record_answers(run, lambda: pytest.fail("Ray was started again"))
    assert started == [True]
    # This process computes what the task did.
    (run.folder.path / "recorded_answers.json").unlink()
    record_answers(run, None)
    again = RecordedAnswers.load(run.folder.path)
    assert again is not None
    assert [row.tuned.token_ids for row in again.rows] == [row.tuned.token_ids for row in recorded.rows]
    assert [row.base and row.base.token_ids for row in again.rows] == [
        row.base and row.base.token_ids for row in recorded.rows
    ]


def test_tuning_without_effect_is_warned_about(
    make: Callable[[float], Config], caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(make(1.0), "register")
    record_answers(run, None)
    assert "the tuned model answers as its base model does: tuning has no effect" in caplog.text


@pytest.mark.parametrize("has_effect", [True, False])
def test_adapter_answers_with_its_base_and_the_base_without_it(
    base_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, *, has_effect: bool
) -> None:
    # With the weights that an adapter starts from it changes nothing.
    lora = LoraConfig(
        r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=not has_effect
    )
    get_peft_model(load_causal_lm(base_folder, "auto"), lora).save_pretrained(tmp_path)
    contract = derive_renderer(base_folder, None).contract
    prompts = [Prompt("0:1", tuple(tokenizer("the shop is down")["input_ids"]))]
    dtype, rows = answer_prompts(tmp_path, base_folder, contract, prompts)
    recorded = RecordedAnswers(
        model_digest="m", contract_digest=contract.digest, max_new_tokens=16, dtype=dtype, rows=tuple(rows)
    )
    assert recorded.is_like_base == (not has_effect)


def test_base_that_is_gone_is_left_out(make: Callable[[float], Config], caplog: pytest.LogCaptureFixture) -> None:
    config = make(1.5)
    shutil.rmtree(config.run.storage / "base")
    record_answers(open_run(config, "register"), None)
    recorded = RecordedAnswers.load(RunFolder.from_config(config).path)
    assert recorded is not None and not recorded.has_base
    assert "the answers of the base model are not recorded" in caplog.text


def test_version_without_recorded_answers_has_none(storage: Path, registry: ModelRegistry, tmp_path: Path) -> None:
    version = register(make_run(storage), ignore_status).version
    assert version.name == NAME
    assert RecordedAnswers.load(registry.fetch(version, tmp_path)) is None
