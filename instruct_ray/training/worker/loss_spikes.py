"""worker, all ranks: detects a sustained loss spike, by the rule of llm-foundry's KillLossSpike callback.

A resumed run reads its earlier losses from `metrics.jsonl`, so it decides like an uninterrupted one.
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
    """The first of its consecutive steps."""
    message: str


class LossSpikeDetector:
    """Counts consecutive steps whose loss is far above the mean of the steps before them."""

    def __init__(self, config: LossSpikeConfig, earlier: list[tuple[int, float]]) -> None:
        """Start after the steps of `earlier`: their (step, loss) in order."""
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        # Consecutive steps with a high loss, up to the last step.
        self._high_steps: list[int] = []
        for step, loss in earlier:
            self.add(step, loss)

    def add(self, step: int, loss: float) -> LossSpike | None:
        """Add the loss of the next step; returns the spike if it has lasted long enough to stop the run.

        A non-finite loss is ignored: its step was skipped.
        """
        if not math.isfinite(loss):
            return None
        config, spike = self._config, None
        if len(self._losses) == config.window:
            mean = statistics.fmean(self._losses)
            self._high_steps = [*self._high_steps, step] if loss >= config.factor * mean else []
            if len(self._high_steps) >= config.num_steps:
                message = (
                    f"loss {loss:.4g} at step {step}: the last {len(self._high_steps)} losses were each at least "
                    f"train.loss_spike.factor={config.factor:g} times the mean of the {config.window} losses before "
                    f"({mean:.4g} at step {step})"
                )
                spike = LossSpike(self._high_steps[0], message)
        self._losses.append(loss)
        return spike


def read_recent_losses(metrics_file: Path, num_steps: int, config: LossSpikeConfig) -> list[tuple[int, float]]:
    """Read (step, loss) of the last of the first `num_steps` steps, as many as can affect a decision.

    Raises:
        OSError: the file can't be read.
    """
    if not num_steps:
        return []
    with metrics_file.open("rb") as file:
        # A line without a line feed was not finished.
        records = [json.loads(line) for line in file if line.endswith(b"\n")]
    losses = [(record["step"], record["loss"]) for record in records if record["loss"] is not None]
    losses = [(step, loss) for step, loss in losses if step <= num_steps]
    return losses[-(config.window + config.num_steps) :]
