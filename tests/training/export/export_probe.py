"""One of two ranks that exports models and reads them back, intact and corrupted on purpose; rank 0 prints JSON.

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

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout
from tests.training.processes import rank_process
from tests.training.tiny_models import CPU

# Case -> (base model, adapters).
CASES = {
    "tied": ("tied", None),
    "untied": ("untied", None),
    # Its experts have other names in the folder than in memory.
    "experts": ("mixtral", None),
    "adapter": ("tied", LoraConfig(rank=4, alpha=16)),
    "dora": ("untied", LoraConfig(rank=4, alpha=16, dora=True)),
    "merged": ("tied", LoraConfig(rank=4, alpha=16, merge=True)),
    "rows of tied": ("tied untrained", LoraConfig(rank=4, alpha=16)),
    "rows of untied": ("untied untrained", LoraConfig(rank=4, alpha=16)),
}
# The tokens whose rows bases named "untrained" lack, and which the cases with rows train besides the adapter.
TOKEN_IDS = (5, 20)
# Cases whose export is also corrupted, in fp32.
CORRUPTED_CASES = ("tied", "adapter", "merged")


class Probe:
    """A run of two steps, and its exporter."""

    def __init__(self, rank: int, stage: int, precision: str, folder: Path, case: str) -> None:
        base_name, self.lora = CASES[case]
        self.base_dir, packs_dir, case_dir = folder / "bases" / base_name, folder / "packs", folder / case
        self.train_config = TrainConfig.model_validate(
            {"zero_stage": stage, "precision": precision, "learning_rate": 2e-2}
        )
        self.dtype, hf_config = DTYPES[precision], load_hf_config(self.base_dir)
        self.attn_implementation = packed_attn_implementation(hf_config, CPU)
        self.layout = MaskLayout.from_hf_config(hf_config, self.attn_implementation, self.dtype)
        self.packs = PackedDataset.open(packs_dir).take([0, 1])
        self.rank = rank
        self.engine = self.build_engine(adapter_dir=None)
        case_dir.mkdir(exist_ok=True)
        self.exporter = Exporter(
            base_dir=self.base_dir,
            hf_config=hf_config,
            packs_dir=packs_dir,
            weights_dir=case_dir / "weights",
            check_file=case_dir / "check.json",
            format=export_format(self.lora),
            attn_implementation=self.attn_implementation,
            is_quantized=False,
            rank=rank,
        )
        self.train(2)

    def build_engine(self, adapter_dir: Path | None) -> DeepSpeedEngine:
        def load() -> torch.nn.Module:
            token_ids = TOKEN_IDS if self.base_dir.name.endswith(" untrained") else ()
            return load_model(
                self.base_dir,
                self.lora,
                self.train_config,
                self.dtype,
                0,
                self.attn_implementation,
                adapter_dir,
                token_ids,
            )

        return DeepSpeedEngine(self.train_config, 1, 2, load)

    def train(self, num_steps: int) -> list[float]:
        """Train on this rank's own pack; returns the losses."""
        losses = []
        for _ in range(num_steps):
            loss = pack_loss(self.engine.model, self.packs[self.rank], CPU, self.layout)
            self.engine.backward(loss / 100)
            self.engine.step(2e-2)
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def compute_loss(self, engine: DeepSpeedEngine) -> float:
        """Compute the loss of the first pack."""
        return pack_loss(engine.model, self.packs[0], CPU, self.layout).item()


@contextmanager
def corrupt_saved_tensors(module: str, corrupt: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Corrupt the tensors that a module writes as safetensors, inside the block."""
    from safetensors.torch import save_file  # noqa: PLC0415  (before it is replaced)

    def save(tensors: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        corrupt(tensors)
        save_file(tensors, *args, **kwargs)

    with patch(f"{module}.safe_save_file", save):
        yield


def change_one_value(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)].view(-1)[0] += 0.01


def drop_one_tensor(tensors: dict[str, Any]) -> None:
    del tensors[max(tensors)]


@contextmanager
def flip_one_gathered_tensor(engine: DeepSpeedEngine) -> Iterator[None]:
    """Reverse the rows of one tensor that `full_state_dict` returns, inside the block."""
    full_state_dict = engine.full_state_dict

    def flipped(**kwargs: bool) -> Any:
        state = full_state_dict(**kwargs)
        if state is not None:
            name = max(name for name in state if state[name].dim() == 2)
            state[name] = state[name].flip(0).contiguous()
        return state

    with patch.object(engine, "full_state_dict", flipped):
        yield


def load_base_of_adapter(folder: Path) -> Any:
    """Replaces `load_merged`, without merging anything."""
    base_dir = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return AutoModelForCausalLM.from_pretrained(base_dir)


def find_problems_of_corrupted_exports(probe: Probe, case: str) -> dict[str, str | None]:
    """Corrupt the export in several ways; returns the problem that was found in each."""
    engine, verify_export_once = probe.engine, probe.exporter.verify_export_once
    saving_module = "peft.peft_model" if case == "adapter" else "transformers.modeling_utils"
    problems = {}
    with corrupt_saved_tensors(saving_module, change_one_value):
        problems["changed"] = verify_export_once(engine).problem
    with corrupt_saved_tensors(saving_module, drop_one_tensor):
        problems["dropped"] = verify_export_once(engine).problem
    with flip_one_gathered_tensor(engine):
        problems["gathered"] = verify_export_once(engine).problem
    if case == "merged":
        with patch("instruct_ray.training.export.weights.load_merged", load_base_of_adapter):
            problems["not merged"] = verify_export_once(engine).problem
    return problems


def run_case(rank: int, folder: Path, stage: int, precision: str, case: str) -> dict[str, Any]:
    probe = Probe(rank, stage, precision, folder, case)
    exporter, engine = probe.exporter, probe.engine
    is_corrupted = case in CORRUPTED_CASES and precision == "fp32"
    corrupted_problems = find_problems_of_corrupted_exports(probe, case) if is_corrupted else {}
    files_left = exporter.check_file.exists() or exporter.weights_dir.exists()
    dist.barrier()
    verified = exporter.verify_export_once(engine)
    check = json.loads(exporter.check_file.read_text()) if exporter.check_file.is_file() else {}
    was_removed = not exporter.weights_dir.exists()
    attn_implementation = engine.module.config._attn_implementation
    is_model_restored = attn_implementation == probe.attn_implementation and engine.module.training
    losses = probe.train(1)
    result: dict[str, Any] = {
        "corrupted_problems": corrupted_problems,
        "files_left_by_corrupted": files_left,
        "problem": verified.problem,
        "check": check,
        "was_removed": was_removed,
        "is_model_restored": is_model_restored,
        "is_finite": bool(torch.tensor(losses).isfinite().all()),
        "export_problem": exporter.export(engine).problem,
    }
    dist.barrier()
    if exporter.format == "adapter":
        reloaded = probe.build_engine(adapter_dir=exporter.weights_dir)
        result["losses_before_and_after_reload"] = probe.compute_loss(engine), probe.compute_loss(reloaded)
    return result


def main(rank: int, world_size: int, folder: Path, stage: str, precision: str) -> None:
    """Run all cases, one after the other."""
    with rank_process(rank, world_size, folder):
        print(json.dumps({case: run_case(rank, folder, int(stage), precision, case) for case in CASES}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
