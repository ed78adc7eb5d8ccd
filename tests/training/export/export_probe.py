"""One of two ranks of a stage: what is exported and read back, and what of it is broken on purpose? Rank 0 prints JSON.

python -m tests.training.export.export_probe RANK WORLD_SIZE FOLDER STAGE PRECISION
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter, export_format
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout
from tests.training.processes import process_group
from tests.training.tiny_models import CONFIGS, CPU

# Name -> (base, adapters).
CASES = {
    "tied": ("tied", None),
    "untied": ("untied", None),
    # Its experts have other names in the folder than in memory.
    "experts": ("mixtral", None),
    "adapter": ("tied", LoraConfig(rank=4, alpha=16)),
    "dora": ("untied", LoraConfig(rank=4, alpha=16, dora=True)),
    "merged": ("tied", LoraConfig(rank=4, alpha=16, merge=True)),
}


class Probe:
    """A run of two steps, and its exporter."""

    def __init__(self, rank: int, stage: int, precision: str, folder: Path, case: str) -> None:
        name, lora = CASES[case]
        base, packs = folder / "bases" / name, folder / "packs"
        train = TrainConfig.model_validate({"zero_stage": stage, "precision": precision, "learning_rate": 2e-2})
        dtype, config = DTYPES[precision], CONFIGS["mixtral" if name == "mixtral" else "llama"]
        self.implementation = packed_attn_implementation(config, CPU)

        def engine_of(adapter: Path | None) -> DeepSpeedEngine:
            return DeepSpeedEngine(
                train, 1, 2, lambda: load_model(base, lora, train, dtype, 0, self.implementation, adapter)
            )

        self.engine_of, self.engine = engine_of, engine_of(None)
        self.layout = MaskLayout.from_hf_config(config, self.implementation, dtype)
        self.packs = PackedDataset.open(packs).take([0, 1])
        self.rank = rank
        work = folder / case
        work.mkdir(exist_ok=True)
        self.exporter = Exporter(
            base, packs, work / "weights", work / "check.json", export_format(lora), self.implementation, False, rank
        )
        self.train(2)

    def train(self, num_steps: int) -> list[float]:
        """Steps on a pack of its own."""
        losses = []
        for _ in range(num_steps):
            loss = pack_loss(self.engine.model, self.packs[self.rank], CPU, self.layout)
            self.engine.backward(loss / 100)
            self.engine.step(2e-2)
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def loss(self, engine: DeepSpeedEngine) -> float:
        """Of a pack."""
        return pack_loss(engine.model, self.packs[0], CPU, self.layout).item()


@contextmanager
def changed_on_the_way(module: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """safetensors are written otherwise than they were given."""
    from safetensors.torch import save_file  # noqa: PLC0415  (before it is replaced)

    def save(tensors: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)
        save_file(tensors, *args, **kwargs)

    with patch(f"{module}.safe_save_file", save):
        yield


def add_a_little(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)].view(-1)[0] += 0.01


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors[max(tensors)]


@contextmanager
def gathered_wrong(engine: DeepSpeedEngine) -> Iterator[None]:
    """One tensor comes out of the gathering with its rows turned round."""
    gather = engine.full_state_dict

    def wrong(**kwargs: bool) -> Any:
        state = gather(**kwargs)
        if state is not None:
            name = max(name for name in state if state[name].dim() == 2)
            state[name] = state[name].flip(0).contiguous()
        return state

    with patch.object(engine, "full_state_dict", wrong):
        yield


def without_adapter(folder: Path) -> Any:
    """A merge that merges nothing."""
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return AutoModelForCausalLM.from_pretrained(base)


def broken(probe: Probe, case: str) -> dict[str, str]:
    """What is said about exports that went wrong."""
    engine, verify_export_once = probe.engine, probe.exporter.verify_export_once
    saver = "peft.peft_model" if case == "adapter" else "transformers.modeling_utils"
    said = {}
    with changed_on_the_way(saver, add_a_little):
        said["changed"] = verify_export_once(engine)
    with changed_on_the_way(saver, drop_one):
        said["dropped"] = verify_export_once(engine)
    with gathered_wrong(engine):
        said["gathered"] = verify_export_once(engine)
    if case == "merged":
        with patch("instruct_ray.training.export.weights.load_merged", without_adapter):
            said["not merged"] = verify_export_once(engine)
    return said


def main(rank: int, world_size: int, folder: Path, stage: str, precision: str) -> None:
    """All cases, one after the other."""
    with process_group(rank, world_size, folder):
        found: dict[str, Any] = {}
        for case in CASES:
            probe = Probe(rank, int(stage), precision, folder, case)
            exporter, engine = probe.exporter, probe.engine
            told = broken(probe, case) if case in ("tied", "adapter", "merged") and precision == "fp32" else {}
            is_left = exporter.record.exists() or exporter.weights.exists()
            dist.barrier()
            problem = exporter.verify_export_once(engine)
            check = json.loads(exporter.record.read_text()) if exporter.record.is_file() else {}
            was_removed = not exporter.weights.exists()
            implementation = engine.engine.module.config._attn_implementation
            is_as_before = implementation == probe.implementation and engine.engine.module.training
            losses = probe.train(1)
            found[case] = {
                "broken": told,
                "left_by_broken": is_left,
                "problem": problem,
                "check": check,
                "was_removed": was_removed,
                "is_as_before": is_as_before,
                "is_finite": bool(torch.tensor(losses).isfinite().all()),
                "export": exporter.export(engine),
            }
            dist.barrier()
            if exporter.form == "adapter":
                found[case]["continued"] = probe.loss(probe.engine), probe.loss(probe.engine_of(exporter.weights))
        print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
