"""A run opened for a stage: its folder, base model, renderer and packs, each loaded on first use and then kept."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.base_model.record import check_base_unchanged
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.base_model.untrained_tokens import find_untrained_tokens, read_adapter_token_ids
from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import PackedDataset, find_packs
from instruct_ray.data.rendering.derive_contract import resolve_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.run.folder import RunFolder
from instruct_ray.run.frozen import check_config_unchanged, freeze_config

Stage = Literal["prepare", "tune", "evaluate", "register"]
# The config sections that decide a stage's result. Once frozen by a stage, they can't change for later stages.
SECTIONS: dict[Stage, tuple[str, ...]] = {
    "prepare": ("run", "data", "model"),
    "tune": ("run", "data", "model", "train"),
    "evaluate": ("run", "data", "model", "train", "evidence"),
    "register": ("run", "data", "model", "train", "evidence", "registry"),
}


@dataclass(frozen=True)
class OpenRun:
    """The parts of a run that a stage works with."""

    config: Config
    stage: Stage

    @cached_property
    def folder(self) -> RunFolder:
        """The paths of the run."""
        return RunFolder.from_config(self.config)

    @cached_property
    def base_model(self) -> BaseModelInfo:
        """The base model on disk.

        Raises:
            InputError: it can't be found, or it differs from the one that the run started with.
        """
        base_model = resolve_base_model(self.config)
        check_base_unchanged(self.config, base_model)
        return base_model

    @cached_property
    def hf_config(self) -> Any:
        """The base model's transformers configuration."""
        return load_hf_config(self.base_model.folder)

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer for the base model's chat template.

        Raises:
            InputError: the chat template can't be used.
        """
        return resolve_renderer(self.base_model, self.config.data.system_prompt, self.config.data.labels)

    @cached_property
    def untrained_tokens(self) -> tuple[int, ...]:
        """Ids of the chat template's tokens that neither the base model nor the adapter on it was trained on.

        Raises:
            InputError: the base model or its chat template can't be used.
        """
        token_ids, base_model = self.renderer.template_token_ids(), self.base_model
        trained = () if base_model.adapter is None else read_adapter_token_ids(base_model.adapter)
        untrained = find_untrained_tokens(base_model.folder, self.hf_config, token_ids)
        return tuple(token_id for token_id in untrained if token_id not in trained)

    @cached_property
    def packs(self) -> PackedDataset:
        """The prepared packs.

        Raises:
            InputError: the run has none yet.
        """
        return find_packs(self.folder)

    def describe_untrained_tokens(self) -> str | None:
        """What untrained tokens mean for a LoRA run, in one line; None if there are none, or if all is trained."""
        lora = self.config.model.lora
        if lora is None or not self.untrained_tokens:
            return None
        tokens = ", ".join(self.renderer.tokenizer.convert_ids_to_tokens(self.untrained_tokens))
        start = f"model.base: {self.base_model.name} was never trained on {tokens}, which its chat template uses"
        if self.base_model.adapter is not None:
            return f"{start}; an adapter that is trained further gets no rows for them, so train a new one on its base"
        if lora.train_untrained_tokens:
            return f"{start}; their rows of the embedding and the output head are trained besides the adapter"
        return (
            f"{start}, and LoRA does not change their rows, so answers may not stop; set "
            "model.lora.train_untrained_tokens=true, or train all weights"
        )

    def freeze(self) -> None:
        """Freeze the config sections of the stage; called once something has been created from them."""
        freeze_config(self.config, *SECTIONS[self.stage])


def open_run(config: Config, stage: Stage) -> OpenRun:
    """Open a run for a stage.

    Raises:
        InputError: the config differs from the one that an earlier stage froze.
    """
    check_config_unchanged(config, *SECTIONS[stage])
    return OpenRun(config, stage)
