"""What programs that don't know the contract read in an exported folder: where to stop, and the positions."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    Qwen2Config,
)

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError
from instruct_ray.tracking.version_files import make_manifest
from instruct_ray.training.export.other_readers import remove_code_references
from instruct_ray.training.export.weights import add_tokenizer_and_contract
from tests import tiny
from tests.training.model.test_trained_parts import MULTIMODAL
from tests.training.tiny_models import SIZES

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CHAT: Any = [{"role": "user", "content": "hi"}]


def make_base(folder: Path, template: str = tiny.CHATML) -> Path:
    """A base whose eos token is not the one that its template ends answers with, as published base models have it."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = template
    tiny.save_base(folder, tokenizer)
    generation_config = {"eos_token_id": tokenizer.eos_token_id, "max_new_tokens": 64}
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., tuple[Path, Renderer]]:
    def export(base: Path, *, is_adapter: bool = False) -> tuple[Path, Renderer]:
        renderer = derive_renderer(base, None)
        renderer.contract.save(tmp_path / "contract.json")
        folder = tmp_path / "model"
        folder.mkdir()
        if is_adapter:
            (folder / "adapter_config.json").write_text("{}")
        else:
            AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
        add_tokenizer_and_contract(folder, base, tmp_path / "contract.json")
        return folder, renderer

    return export


class Say(LogitsProcessor):
    """Makes a token the only possible one."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._token_id] = 0
        return forced


def test_plain_transformers_stops_where_the_contract_does(
    export: Callable[..., tuple[Path, Renderer]], tmp_path: Path
) -> None:
    folder, renderer = export(make_base(tmp_path / "base"))
    stop = renderer.contract.stop_token_id
    assert stop != load_hf_config(tmp_path / "base").eos_token_id
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (stop, stop)
    assert tokenizer.eos_token_id == stop
    assert model.generation_config.max_new_tokens == 64
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, logits_processor=LogitsProcessorList([Say(stop)]))
    assert output[0, inputs["input_ids"].shape[1] :].tolist() == [stop]
    assert load_renderer(folder).contract.digest == renderer.contract.digest


def test_adapter_folder_names_the_stop_token(export: Callable[..., tuple[Path, Renderer]], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "generation_config.json").unlink()
    folder, renderer = export(base, is_adapter=True)
    stop = renderer.contract.stop_token_id
    assert GenerationConfig.from_pretrained(folder).eos_token_id == stop
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == stop
    assert not (folder / "config.json").exists()


def test_adapter_has_the_tokenizer_that_its_base_is_loaded_with(
    export: Callable[..., tuple[Path, Renderer]], tmp_path: Path
) -> None:
    """Beside the config of a Qwen2, transformers adds Qwen2's normalizer to the tokenizer of the folder."""
    base = make_base(tmp_path / "base")
    config = Qwen2Config(**SIZES | {"vocab_size": load_hf_config(base).vocab_size})
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    folder, renderer = export(base, is_adapter=True)
    assert load_renderer(folder).contract.digest == renderer.contract.digest
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == renderer.contract.stop_token_id


def test_template_that_writes_the_eos_token_renders_as_before(
    export: Callable[..., tuple[Path, Renderer]], tmp_path: Path
) -> None:
    folder, renderer = export(make_base(tmp_path / "base", "{{ eos_token }}" + tiny.CHATML))
    exported = load_renderer(folder)
    expected = renderer.prompt(CHAT)
    assert renderer.tokenizer.decode(expected).startswith("<|endoftext|>")
    assert exported.prompt(CHAT) == expected
    encoding = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, add_generation_prompt=True)
    assert encoding["input_ids"] == expected
    assert exported.contract.digest == renderer.contract.digest
    # Tuned once more, the same holds.
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    add_tokenizer_and_contract(again, folder, folder / "contract.json")
    assert load_renderer(again).prompt(CHAT) == expected


@pytest.mark.parametrize(
    ("hf_config", "expected"),
    [
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), {}),
        (LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE), {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        (
            Gemma3TextConfig(
                **SIZES,
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                },
            ),
            {"rope_local_base_freq": 20000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
    ids=["default", "llama3", "by layer type"],
)
def test_older_readers_find_the_positions(
    hf_config: PreTrainedConfig, expected: dict[str, Any], export: Callable[..., tuple[Path, Renderer]], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    hf_config.vocab_size = load_hf_config(base).vocab_size
    AutoModelForCausalLM.from_config(hf_config).save_pretrained(base)
    folder, _ = export(base)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 500000.0
    assert config["torch_dtype"] == "float32"
    for key, value in expected.items():
        assert value.items() <= config[key].items() if isinstance(value, dict) else config[key] == value
    assert load_hf_config(folder).rope_parameters == load_hf_config(base).rope_parameters


def test_composite_config_gets_both_in_its_text_config(
    export: Callable[..., tuple[Path, Renderer]], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    multimodal = copy.deepcopy(MULTIMODAL)
    multimodal.text_config.vocab_size = load_hf_config(base).vocab_size
    AutoModelForCausalLM.from_config(multimodal).save_pretrained(base)
    folder, renderer = export(base)
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == config["text_config"]["eos_token_id"] == renderer.contract.stop_token_id
    assert (
        config["text_config"]["rope_theta"]
        == load_hf_config(base).text_config.rope_parameters["full_attention"]["rope_theta"]
    )
    assert load_hf_config(folder).text_config.rope_parameters == load_hf_config(base).text_config.rope_parameters


def test_references_to_code_of_the_base_are_removed(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": auto_map, "vocab_size": 8}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.X", None]}, "a": 1}))
    with pytest.raises(InputError, match="auto_map asks for Python code"):
        make_manifest(tmp_path)
    remove_code_references(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama", "vocab_size": 8}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"a": 1}
    assert make_manifest(tmp_path).files.keys() == {"config.json", "tokenizer_config.json"}


def test_export_of_a_base_with_code_names_none(tmp_path: Path, base_folder: Path) -> None:
    base, exported, contract_file = tmp_path / "base", tmp_path / "exported", tmp_path / "contract.json"
    shutil.copytree(base_folder, base)
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoConfig": "modeling.Config"}}))
    AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False).save_pretrained(exported)
    derive_renderer(base, None).contract.save(contract_file)
    add_tokenizer_and_contract(exported, base, contract_file)
    assert "auto_map" not in json.loads((exported / "config.json").read_text())
    make_manifest(exported)
