"""Runs tests that need several ranks but no cluster: each rank is a process, connected by gloo."""

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
# glibc returns freed memory to the system immediately, so that a process's memory can be measured.
MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# The file that ranks use to find each other. A file of an earlier process group must not be used again.
RENDEZVOUS_FILE = "rendezvous"


def run_ranks(module: str, world_size: int, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run `python -m MODULE RANK WORLD_SIZE FOLDER ARGUMENTS` for each rank.

    Returns:
        The last line that each rank printed, parsed as JSON.
    """
    (folder / RENDEZVOUS_FILE).unlink(missing_ok=True)
    command = [sys.executable, "-m", module]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **MALLOC_ENV},
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr[-3000:]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


@contextmanager
def process_group(rank: int, world_size: int, folder: Path) -> Iterator[None]:
    """Join the process group of all ranks, and leave it when all of them have finished."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{RENDEZVOUS_FILE}", rank=rank, world_size=world_size)
    yield
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def rank_process(rank: int, world_size: int, folder: Path) -> Iterator[None]:
    """`process_group` for a process that is one rank: the process ends with the block.

    It ends without the interpreter's clean-up, in which gloo's threads once in many runs abort the process ("terminate
    called without an active exception"), although its process groups were destroyed.
    """
    with process_group(rank, world_size, folder):
        yield
    sys.stdout.flush()
    os._exit(0)
