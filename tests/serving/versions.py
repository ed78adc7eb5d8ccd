"""A registry to which versions are added: copies of the registered run's, changed or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.config.schema import Config, RegistryConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.files import atomic_write_json
from instruct_ray.inference.loading import model_digest
from instruct_ray.inference.recorded_answers import RECORDED_ANSWERS_FILE, RecordedAnswers
from instruct_ray.registry.alias_moves import move_alias
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.record_answers import Prompt, answer_prompts
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.version_files import MANIFEST_FILE, MANIFEST_TAG, make_manifest


class Versions:
    """A copy of the registry of the registered run, to which versions are added."""

    def __init__(self, registered: Config, folder: Path) -> None:
        source = Path(tracking_uri(registered).removeprefix("sqlite:///"))
        self.database = folder / "mlflow.db"
        shutil.copy(source, self.database)
        self.config = RegistryConfig(uri=f"sqlite:///{self.database}", name="tiny")
        self.registry = ModelRegistry(f"sqlite:///{self.database}")
        self._folder = folder

    def add(self, change: Callable[[Path], None] | None = None, *, remakes_manifest: bool = True) -> str:
        """Add a copy of version 1 whose files are changed."""
        first = self.registry.resolve("models:/tiny/1")
        folder = self._folder / f"version-{len(self.registry.versions('tiny'))}"
        self.registry.download(first, folder)
        [model_dir] = {path.parent for path in folder.rglob("contract.json")}
        tags = dict(first.tags)
        if change is not None:
            change(model_dir)
            if remakes_manifest:
                (model_dir / MANIFEST_FILE).unlink()
                manifest = make_manifest(model_dir)
                atomic_write_json(model_dir / MANIFEST_FILE, manifest.model_dump(mode="json"))
                tags[MANIFEST_TAG] = manifest.digest
        return str(self.registry.client.create_model_version("tiny", source=str(model_dir), tags=tags).version)

    def decide(self, number: str) -> None:
        """Record a decision for a version, and move the alias."""
        move_alias(self.registry, "champion", self.registry.get("tiny", number), Reason("force", "a test"))


def make_adapter(seed: int, **lora: Any) -> Callable[[Path], None]:
    """A change for `Versions.add`: a random adapter instead of the full model, and the answers that it gives."""

    def change(model_dir: Path) -> None:
        base = Path(json.loads((model_dir / "instruct_ray.json").read_text())["base_folder"])
        recorded = RecordedAnswers.load(model_dir)
        assert recorded is not None
        for name in ("model.safetensors", "config.json", "generation_config.json"):
            (model_dir / name).unlink(missing_ok=True)
        torch.manual_seed(seed)
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear"} | lora)
        model = get_peft_model(load_causal_lm(base, "auto"), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        model.save_pretrained(model_dir)
        prompts = [Prompt(row.row_id, row.prompt_ids) for row in recorded.rows]
        _, rows = answer_prompts(model_dir, base, PromptContract.load(model_dir / "contract.json"), prompts)
        values = recorded.model_copy(update={"model_digest": model_digest(model_dir), "rows": tuple(rows)})
        (model_dir / RECORDED_ANSWERS_FILE).write_text(values.model_dump_json())

    return change
