"""worker, rank 0: converts a ZeRO checkpoint to DeepSpeed's universal form, which any number of ranks can load."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Processes that extract and that merge the state; each holds a part of the optimizer state in memory.
NUM_PROCESSES = 2


def convert_to_universal(checkpoint: Path, tag: str, target: Path) -> None:
    """Convert a checkpoint into `target`, in a process of its own so that its memory is freed.

    Raises:
        RuntimeError: DeepSpeed failed; the message ends with the last line of its output.
    """
    shutil.rmtree(target, ignore_errors=True)
    processes = ["--num_extract_workers", str(NUM_PROCESSES), "--num_merge_workers", str(NUM_PROCESSES)]
    folders = ["--input_folder", str(checkpoint / tag), "--output_folder", str(target / tag)]
    result = subprocess.run(
        # The last option: an ordinary model lacks the entries about its parameters that Megatron's checkpoints have.
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, *processes, "--inject_missing_state"],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise RuntimeError(f"{checkpoint}: can't be converted for another number of workers: {lines[-1]}")
