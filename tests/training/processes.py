"""Ranks as plain processes beside each other on gloo: what needs no cluster, but more than one rank."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 300
# glibc: what is freed goes back to the system at once, so that a process has the memory that it holds.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Where they meet; of an earlier run it would not do.
MEETING = "meeting"


def run_ranks(module: str, world_size: int, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run `python -m MODULE RANK WORLD_SIZE FOLDER …` for each rank; what each printed last, as JSON."""
    (folder / MEETING).unlink(missing_ok=True)
    start = [sys.executable, "-m", module]
    processes = [
        subprocess.Popen(
            [*start, str(rank), str(world_size), str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **GIVE_BACK},
        )
        for rank in range(world_size)
    ]
    try:
        ends = [process.communicate(timeout=TIMEOUT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, said) in zip(processes, ends, strict=True):
        assert process.returncode == 0, said[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@contextmanager
def together(rank: int, world_size: int, folder: Path) -> Iterator[None]:
    """Called by a rank: meet the others, and part when all are done.

    Without parting, gloo's threads sometimes outlive what they need and abort the process ("terminate called
    without an active exception").
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{MEETING}", rank=rank, world_size=world_size)
    yield
    dist.barrier()
    dist.destroy_process_group()
