"""Losses step by step -> is training running away? Decided as llm-foundry's KillLossSpike does, alike on all ranks.

What a continued run did before comes from its `metrics.jsonl`, so it decides as an uninterrupted one.
"""

import json
import math
import statistics
from collections import deque
from pathlib import Path

from instruct_ray.config import LossSpikeConfig


class SpikeWatch:
    """Counts the steps in a row whose loss is far above the mean of the steps before them."""

    def __init__(self, spike: LossSpikeConfig, earlier: list[tuple[int, float]]) -> None:
        """`earlier`: (step, loss) of the steps done, in order."""
        self._spike = spike
        self._losses: deque[float] = deque(maxlen=spike.window)
        self.steps: list[int] = []
        """The spiking steps in a row, up to now."""
        for step, loss in earlier:
            self.add(step, loss)

    def add(self, step: int, loss: float) -> str:
        """The loss of the next step; returns why the run must end, or nothing. One that is no number is passed over:
        its step was left out."""
        if not math.isfinite(loss):
            return ""
        spike, problem = self._spike, ""
        if len(self._losses) == spike.window:
            mean = statistics.fmean(self._losses)
            self.steps = [*self.steps, step] if loss >= spike.factor * mean else []
            if len(self.steps) >= spike.num_steps:
                problem = (
                    f"loss {loss:.4g} at step {step}, the mean of the {spike.window} before is {mean:.4g}; "
                    f"{len(self.steps)} steps in a row are above train.loss_spike.factor={spike.factor:g} times that"
                )
        self._losses.append(loss)
        return problem


def losses_of(metrics: Path, spike: LossSpikeConfig) -> list[tuple[int, float]]:
    """(step, loss) of the last lines of `metrics.jsonl`, as many as a decision can depend on."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]
    return losses[-(spike.window + spike.num_steps) :]
