"""A ZeRO checkpoint of some ranks -> DeepSpeed's universal form, which any number of ranks can load."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Processes that split and that merge: each holds a share of the optimizer's state.
NUM_PROCESSES = 2


def convert_to_universal(folder: Path, tag: str, target: Path) -> None:
    """Convert into `target`, in processes of their own: they leave nothing in this one's memory.

    Raises:
        RuntimeError: DeepSpeed can't; with what it said last.
    """
    shutil.rmtree(target, ignore_errors=True)
    processes = ["--num_extract_workers", str(NUM_PROCESSES), "--num_merge_workers", str(NUM_PROCESSES)]
    places = ["--input_folder", str(folder / tag), "--output_folder", str(target / tag)]
    done = subprocess.run(
        # What Megatron would have told about its parameters, an ordinary model has none of.
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *places, *processes, "--inject_missing_state"],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise RuntimeError(f"{folder}: can't be converted for another number of workers: {lines[-1]}")
