"""worker, all ranks: detects a sustained loss spike, by the rule of llm-foundry's KillLossSpike callback.

A resumed run reads its earlier losses from `metrics.jsonl`, so it decides as an uninterrupted one.
"""

import json
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.train import LossSpikeConfig


@dataclass(frozen=True)
class LossSpike:
    """A loss that rose and stayed high."""

    first_step: int
    """The step it began with."""
    message: str


class LossSpikeDetector:
    """Counts consecutive steps whose loss is far above the mean of the steps before them."""

    def __init__(self, config: LossSpikeConfig, earlier: list[tuple[int, float]]) -> None:
        """`earlier`: (step, loss) of the steps before, in order."""
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        # The consecutive spiking steps up to now.
        self._steps: list[int] = []
        for step, loss in earlier:
            self.add(step, loss)

    def add(self, step: int, loss: float) -> LossSpike | None:
        """Take the loss of the next step; returns a spike that must end the run. A non-finite loss does not count: its
        step was skipped."""
        if not math.isfinite(loss):
            return None
        config, spike = self._config, None
        if len(self._losses) == config.window:
            mean = statistics.fmean(self._losses)
            self._steps = [*self._steps, step] if loss >= config.factor * mean else []
            if len(self._steps) >= config.num_steps:
                message = (
                    f"loss {loss:.4g} at step {step}, the mean of the {config.window} before is {mean:.4g}; "
                    f"{len(self._steps)} consecutive steps are above train.loss_spike.factor={config.factor:g} times "
                    "that"
                )
                spike = LossSpike(self._steps[0], message)
        self._losses.append(loss)
        return spike


def read_recent_losses(metrics: Path, spike: LossSpikeConfig) -> list[tuple[int, float]]:
    """(step, loss) of the last lines of `metrics.jsonl`, as many as a decision can depend on."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]
    return losses[-(spike.window + spike.num_steps) :]
