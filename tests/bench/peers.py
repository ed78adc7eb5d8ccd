"""The peers of the training benchmark: TRL, and the Trainer of transformers with DeepSpeed.

They have their own virtual environment outside the repository. Their best settings are measured with `--try`.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.machine import ROOT, log

REQUIREMENTS = ("trl==1.16.0", "torch==2.13.0", "deepspeed==0.19.8")
# Options of a peer's trainer; rows are never truncated.
Settings = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A trainer, and its settings in the benchmark."""

    name: str
    trainer: str
    """Its name in `peer.py`."""
    defaults: Settings
    best: dict[str, Settings]
    """The fastest candidate on each data set, on two cores."""
    candidates: dict[str, Settings]
    """The settings that `--try` measures."""

    def sides(self, data: str) -> dict[str, Settings]:
        """The settings that are timed on a data set, by the name of the side."""
        return {f"{self.name}, defaults": self.defaults, f"{self.name}, best settings": self.best[data]}


SORTED: Settings = {"train_sampling_strategy": "group_by_length"}
# TRL 1.16's own defaults are bf16 autocast, gradient checkpointing, batches of 8 random rows, weights in the
# checkpoint's precision (bf16).
PLAIN_TRL: Settings = SORTED | {"max_length": None, "bf16": True, "gradient_checkpointing": False}
TRL = Peer(
    "TRL",
    "trl",
    defaults={"max_length": None},
    # Measured 2026-11-24. Packing is excluded: without FlashAttention packed rows attend to each other, and it was not
    # faster.
    best={
        "clinc": PLAIN_TRL | {"per_device_train_batch_size": 32},
        "alpaca": PLAIN_TRL | {"per_device_train_batch_size": 4},
    },
    candidates={
        "batches of 8": PLAIN_TRL,
        "weights in fp32 (mixed precision with master weights)": PLAIN_TRL | {"dtype": "fp32"},
        "bf16 weights without autocast": PLAIN_TRL | {"bf16": False},
        "batches of 4": PLAIN_TRL | {"per_device_train_batch_size": 4},
        "batches of 16": PLAIN_TRL | {"per_device_train_batch_size": 16},
        "batches of 32": PLAIN_TRL | {"per_device_train_batch_size": 32},
        "batches of 16, weights in fp32": PLAIN_TRL | {"per_device_train_batch_size": 16, "dtype": "fp32"},
        "torch.compile, lengths padded to 32": PLAIN_TRL | {"torch_compile": True, "pad_to_multiple_of": 32},
        "padding-free (block mask on CPU)": PLAIN_TRL | {"padding_free": True},
        "packing bfd to 512": PLAIN_TRL | {"packing": True, "max_length": 512, "per_device_train_batch_size": 1},
    },
)
# bf16 weights with fp32 master weights, as on our side. Batches of 8 random rows are the Trainer's default.
TRAINER = Peer(
    "Trainer + DeepSpeed",
    "transformers",
    defaults={"zero_stage": 2},
    # Measured 2026-11-25 on 125 rows of CLINC150; on 32 general triples only with batches of 4 and 8.
    best={
        "clinc": SORTED | {"zero_stage": 0, "per_device_train_batch_size": 32},
        "alpaca": SORTED | {"zero_stage": 0, "per_device_train_batch_size": 4},
    },
    candidates={
        f"ZeRO-{stage}, batches of {batch} of similar lengths": SORTED
        | {"zero_stage": stage, "per_device_train_batch_size": batch}
        for stage, batch in ((0, 4), (0, 8), (0, 16), (0, 32), (2, 16))
    },
)
PEERS = (TRL, TRAINER)
# On a GPU, with the kernels of the package liger-kernel. Not measured yet. TRL's packing needs FlashAttention, so it is
# not among the settings.
GPU_TRL = Peer(
    "TRL",
    "trl",
    defaults=TRL.defaults,
    best={
        "clinc": PLAIN_TRL | {"per_device_train_batch_size": 256, "use_liger_kernel": True},
        "alpaca": PLAIN_TRL | {"per_device_train_batch_size": 32, "use_liger_kernel": True},
    },
    candidates={
        "batches of 64, liger": PLAIN_TRL | {"per_device_train_batch_size": 64, "use_liger_kernel": True},
        "batches of 64": PLAIN_TRL | {"per_device_train_batch_size": 64},
    },
)


def ensure_peer_python(folder: Path) -> Path:
    """Return the interpreter of the peers' environment; create it if needed.

    Raises:
        ValueError: the folder is inside the repository.
    """
    if folder.resolve().is_relative_to(ROOT):
        raise ValueError(f"{folder} is inside the repository; use a folder outside for the peers' environment")
    marker, python = folder / ".ready", folder / "bin" / "python"
    if not marker.is_file() or marker.read_text().split() != list(REQUIREMENTS):
        log(f"installing {' '.join(REQUIREMENTS)} into {folder} (minutes, once)")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["python3.11", "-m", "venv", str(folder)], check=True)
        # The versions that instruct_ray is tested with, so that torch and transformers are the same on all sides.
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), *REQUIREMENTS], check=True, env=env)
        marker.write_text("\n".join(REQUIREMENTS))
    return python
