"""Ends vLLM's processes when the process of the engine is gone: one that is killed can't tell them, so they would stay.

Runs in vLLM's worker processes.
"""

import os
import threading

import psutil


def end_with(engine_pid: int) -> None:
    """Start a thread that ends this process, and the one of vLLM's that started it, when the engine's process ends."""
    engine, parent = psutil.Process(engine_pid), psutil.Process().parent()
    # The model may be in the very process that the engine started.
    others = [parent] if parent is not None and parent != engine else []
    threading.Thread(target=_end_with, args=(engine, others), name="end_with", daemon=True).start()


def _end_with(engine: psutil.Process, others: list[psutil.Process]) -> None:
    engine.wait()
    for process in others:
        # It may be gone by itself.
        if process.is_running():
            process.kill()
    os._exit(1)
