"""TRL in an environment of its own, outside the repository, and settings that may make it fast."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.machine import ROOT, say

REQUIREMENTS = ("trl==1.16.0", "torch==2.13.0")
# TRL 1.16's own defaults are bf16 autocast, gradient checkpointing, batches of 8 random rows, weights in the
# checkpoint's precision (bf16). Rows are never cut, in either.
DEFAULTS: dict[str, Any] = {"max_length": None}
COMMON: dict[str, Any] = {
    "max_length": None,
    "bf16": True,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
}
# The fastest of the candidates on each data set, as `--try` found them on two cores (2026-11-24). Packing is none: its
# rows see each other where FlashAttention is not there to part them, and it was no faster.
BEST: dict[str, dict[str, Any]] = {
    "clinc": COMMON | {"per_device_train_batch_size": 32},
    "alpaca": COMMON | {"per_device_train_batch_size": 4},
}
# What `--try` measures.
CANDIDATES: dict[str, dict[str, Any]] = {
    "batches of 8": COMMON,
    "weights in fp32 (mixed precision with master weights)": COMMON | {"dtype": "fp32"},
    "bf16 weights without autocast": COMMON | {"bf16": False},
    "batches of 4": COMMON | {"per_device_train_batch_size": 4},
    "batches of 16": COMMON | {"per_device_train_batch_size": 16},
    "batches of 32": COMMON | {"per_device_train_batch_size": 32},
    "batches of 16, weights in fp32": COMMON | {"per_device_train_batch_size": 16, "dtype": "fp32"},
    "torch.compile, lengths padded to 32": COMMON | {"torch_compile": True, "pad_to_multiple_of": 32},
    "padding-free (block mask on CPU)": COMMON | {"padding_free": True},
    "packing bfd to 512": COMMON | {"packing": True, "max_length": 512, "per_device_train_batch_size": 1},
}


def python_of(folder: Path) -> Path:
    """The interpreter of TRL's environment; creates it if it is not there.

    Raises:
        ValueError: the folder lies inside the repository.
    """
    if folder.resolve().is_relative_to(ROOT):
        raise ValueError(f"{folder} lies inside the repository; TRL's environment must not")
    ready, python = folder / ".ready", folder / "bin" / "python"
    if not ready.is_file() or ready.read_text().split() != list(REQUIREMENTS):
        say(f"installing {' '.join(REQUIREMENTS)} into {folder} (minutes, once)")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["python3.11", "-m", "venv", str(folder)], check=True)
        # The versions that this project is tested with, so that torch and transformers are the same on both sides.
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), *REQUIREMENTS], check=True, env=env)
        ready.write_text("\n".join(REQUIREMENTS))
    return python
