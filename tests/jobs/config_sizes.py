"""What a run of the configs for models of 1, 8 and 70 billion parameters needs, by the estimate of `doctor`."""

from pathlib import Path
from textwrap import wrap

from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from instruct_ray.config.schema import Config
from instruct_ray.training.capacity.memory import (
    checkpoint_bytes,
    estimate_memory,
    format_gib,
    model_bytes,
)
from instruct_ray.training.capacity.model_sizer import ModelSizer

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
GPUS_PER_NODE = 8
# What a card of so many GB offers to programs, in GiB: L4, L40S, H100.
USABLE_GIB = {24: 22.5, 48: 45.0, 80: 79.1}
# Sizes in `config.json` of the base models, and the published number of their parameters.
QWEN3 = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
BASES: dict[str, tuple[PreTrainedConfig, int]] = {
    "Qwen/Qwen3-1.7B": (
        Qwen3Config(
            **QWEN3,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            tie_word_embeddings=True,
        ),
        1_720_574_976,
    ),
    "Qwen/Qwen3-8B": (
        Qwen3Config(**QWEN3, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32),
        8_190_735_360,
    ),
    "meta-llama/Llama-3.3-70B-Instruct": (
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=8192,
            intermediate_size=28_672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
        70_553_706_496,
    ),
}


class ConfigSizes:
    """What a run of a config needs, on its number of GPUs."""

    def __init__(self, config: Config) -> None:
        train, lora = config.train, config.model.lora
        hf_config, _ = BASES[config.model.base]
        sizer = ModelSizer.upper_bound(hf_config, None, config.data.pack_tokens, train, ())
        size = sizer.compute_size(lora, train)
        self.num_full_parameters = size.num_parameters - (size.num_trainable if lora else 0)
        self.estimate = estimate_memory(size, train, train.min_workers)
        workers_per_node = min(GPUS_PER_NODE, train.min_workers)
        self.node_bytes = workers_per_node * self.estimate.host_total + self.estimate.export
        self.checkpoint = checkpoint_bytes(size, train)
        self.model = model_bytes(size, train, is_adapter=lora is not None)
        # Those that are kept, and the one that is being written.
        self.storage_bytes = (train.num_checkpoints + 1) * self.checkpoint + self.model

    def lines(self, usable_gib: float) -> list[str]:
        """The comment of the config."""
        parts = ", ".join(f"{name} {format_gib(size)}" for name, size in self.estimate.device.items())
        paragraphs = [
            "A starting point that has not been run on such GPUs. Sizes are those that `instruct-ray doctor` estimates "
            "for packs full of target tokens; with shorter answers it is less.",
            f"Memory of a GPU: {format_gib(self.estimate.device_total)} of {usable_gib:g} GiB ({parts}).",
            f"Memory of a node: {format_gib(self.node_bytes)}, of which {format_gib(self.estimate.export)} once, for "
            "the export.",
            f"Storage: {format_gib(self.storage_bytes)} (a checkpoint {format_gib(self.checkpoint)}, the model "
            f"{format_gib(self.model)}).",
        ]
        return [f"# {line}" for paragraph in paragraphs for line in wrap(paragraph, 118)]


def read_gpus(text: str) -> tuple[int, int]:
    """The number of GPUs, and the GB of each, in the second line of a config."""
    number, gigabytes = text.splitlines()[1].removeprefix("# GPUs: ").removesuffix(" GB").split(" x ")
    return int(number), int(gigabytes)
