"""Bases that can't be loaded, or not completely, are refused in one line before anything starts."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from instruct_ray.base_model.check import check_model_folder
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.data.preview.preview import make_preview
from instruct_ray.errors import InputError
from tests.training.tiny_models import CONFIGS, make_model

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 123456\n".format("0" * 64)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def folder(tmp_path: Path, base_folder: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


def update_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*"))) > 2


def drop_shard(folder: Path, name: str) -> None:
    shard(folder)
    next(folder.glob(name)).unlink()


def replace_with_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def add_tokens(folder: Path, *tokens: str, special: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.save_pretrained(folder)


def set_pad_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer weights": (lambda f: (f / WEIGHTS).write_text(LFS_POINTER), r"safetensors is a Git LFS pointer.*lfs pull"),
    "pointer config": (lambda f: (f / CONFIG).write_text(LFS_POINTER), r"config\.json is a Git LFS pointer"),
    "pointer tokenizer": (lambda f: (f / "tokenizer.json").write_text(LFS_POINTER), r"tokenizer\.json is a Git LFS po"),
    "cut weights": (
        lambda f: cut(f / WEIGHTS, 9000),
        r"has 9,000 bytes, its header says \d+,\d{3}; download it again",
    ),
    "cut header": (lambda f: cut(f / WEIGHTS, 100), r"cut off after 100 bytes; download it again"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), r"model\.safetensors can not be read"),
    "other format": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x02" * 999), r"no safetensors file, or cut off"),
    "too long": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"), r"bytes, its header says"),
    "pickle": (replace_with_pickle, r"only pytorch_model\.bin; pickles are never loaded"),
    "missing shard": (
        lambda f: drop_shard(f, "model-00002-*"),
        r"lacks 1 of its \d files with weights, such as model-0",
    ),
    "missing index": (lambda f: drop_shard(f, "*.index.json"), r"neither .* nor .*, although it has model-00001-of-0"),
    "missing layer": (
        lambda f: update_config(f, num_hidden_layers=3),
        r"the files lack model\.layers\.2\..*\(9 missing",
    ),
    "missing weight": (lambda f: change_weights(f, lambda w: w.pop("model.norm.weight")), r"lack model\.norm\.weight"),
    "other shapes": (lambda f: update_config(f, intermediate_size=96), r"has the shape \[\d+, \d+\] in the files, \["),
    "small vocabulary": (
        lambda f: add_tokens(f, "new", special=False),
        r"tokenizer has more tokens .*'new' is \d+, the",
    ),
    "token in template": (lambda f: add_tokens(f, "assistant", special=True), r"'assistant' is \d+, the embedding has"),
    "tokenizer's pad": (set_pad_token, r"'<pad>' is \d+, the embedding has \d+ rows \(1 such tokens\)"),
    "pad id": (
        lambda f: update_config(f, pad_token_id=500),
        r"config\.json: pad_token_id 500 is not in the vocabulary",
    ),
    "gptq": (lambda f: update_config(f, quantization_config={"quant_method": "gptq"}), r"are quantized \(gptq\)"),
    "int8": (
        lambda f: change_weights(f, lambda w: w.update({"model.embed_tokens.weight": torch.ones(9, 9).char()})),
        r"embed_tokens\.weight is quantized \(I8\)",
    ),
    "unknown": (lambda f: update_config(f, model_type="llama9"), r"transformers 5\S+ has no architecture 'llama9'"),
    "own code": (
        lambda f: update_config(f, model_type="x", auto_map={"AutoConfig": "x.X"}),
        r"needs Python code of its",
    ),
    "no type": (lambda f: (f / CONFIG).write_text("{}"), r"config\.json names no model_type"),
    "broken config": (lambda f: (f / CONFIG).write_text("{"), r"config\.json is not valid JSON"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"has no config\.json; give a Hugging Face model folder"),
    "wrong values": (lambda f: update_config(f, num_attention_heads="four"), r"config\.json can't be used: "),
    "encoder": (lambda f: update_config(f, model_type="t5"), r"t5 is not a causal language model of transformers"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], r"the tokenizer can't be loaded: "),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), r"the tokenizer can't be loaded: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_base_is_refused_in_one_line(make_config: Callable[..., Config], folder: Path, fault: str) -> None:
    break_base, message = FAULTS[fault]
    break_base(folder)
    # What every stage that needs the base does first; none of them has started anything by then.
    with pytest.raises(InputError, match=rf"^model\.base: .*{message}") as caught:
        make_preview(make_config(model={"base": str(folder)}), 1)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_passes(tmp_path: Path, base_folder: Path, name: str) -> None:
    """Mixtral's files name and shape its experts otherwise than the model in memory."""
    config = copy.deepcopy(CONFIGS[name])
    config.get_text_config().vocab_size = 512
    make_model(config).save_pretrained(tmp_path)
    for file in base_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    check_model_folder(tmp_path)


def test_harmless_differences_pass(make_config: Callable[..., Config], folder: Path) -> None:
    """Weights in shards, a native architecture that keeps its old auto_map, a special token that is never used."""
    shard(folder)
    update_config(folder, auto_map={"AutoConfig": "modeling.Config"}, pad_token_id=-1)
    add_tokens(folder, "<image_soft_token>", special=True)
    assert resolve_base_model(make_config(model={"base": str(folder)})).folder == folder


def test_random_init_needs_no_weights(make_config: Callable[..., Config], folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    model = {"base": str(folder), "random_init": {"num_hidden_layers": 1}}
    resolve_base_model(make_config(model=model))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"^model\.base: .*the tokenizer can't be loaded"):
        resolve_base_model(make_config(model=model))
