"""pure: lines of `metrics.jsonl` -> the status line of a training run."""

from collections import deque
from datetime import timedelta
from typing import Any

# Number of steps that rates are averaged over.
WINDOW = 20


class Progress:
    """Formats the status line. Rates and the time left are averages over the last steps."""

    def __init__(self) -> None:
        self._last_steps: deque[dict[str, Any]] = deque(maxlen=WINDOW)

    def format_step(self, metrics: dict[str, Any]) -> str:
        """The status line after a step, from the metrics of the step."""
        self._last_steps.append(metrics)
        seconds = self._sum("seconds")
        seconds_left = (metrics["num_steps"] - metrics["step"]) * seconds / len(self._last_steps)
        tokens_per_second = self._sum("num_tokens") / seconds
        target_tokens_per_second = self._sum("num_trained") / seconds
        parts = [
            f"step {metrics['step']}/{metrics['num_steps']}",
            f"epoch {metrics['epoch']:.2f}",
            f"loss {_format_optional(metrics['loss'], '.3f')}",
            f"lr {metrics['lr']:.1e}",
            f"grad norm {_format_optional(metrics['grad_norm'], '.2f')}",
            f"{tokens_per_second:,.0f} tokens/s ({target_tokens_per_second:,.0f} target tokens/s)",
            f"data wait {self._sum('wait_seconds') / seconds:.0%}",
        ]
        if "mfu" in metrics:
            parts.append(f"MFU {metrics['mfu']:.0%}")
        if "gpu_peak_bytes" in metrics:
            parts.append(f"GPU memory {metrics['gpu_peak_bytes'] / 2**30:.1f} GiB")
        is_last = metrics["step"] == metrics["num_steps"]
        rest = "exporting the model" if is_last else f"{timedelta(seconds=round(seconds_left))} left"
        return "  ".join([*parts, rest])

    def _sum(self, key: str) -> float:
        return float(sum(metrics[key] for metrics in self._last_steps))


def _format_optional(value: float | None, spec: str) -> str:
    """Format a value that is None for a skipped step."""
    return "none" if value is None else format(value, spec)
