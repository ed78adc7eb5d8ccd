"""A line of `metrics.jsonl` -> the line that says how far a training is."""

from collections import deque
from datetime import timedelta
from typing import Any

# Steps that rates are averaged over.
WINDOW = 20


class Progress:
    """Rates over the last steps, which take unequal time."""

    def __init__(self) -> None:
        self._last: deque[dict[str, Any]] = deque(maxlen=WINDOW)

    def line(self, record: dict[str, Any]) -> str:
        """What to show after a step."""
        self._last.append(record)
        seconds = self._sum("seconds")
        left = (record["num_steps"] - record["step"]) * seconds / len(self._last)
        parts = [
            f"step {record['step']}/{record['num_steps']}",
            f"epoch {record['epoch']:.2f}",
            f"loss {_number(record['loss'], '.3f')}",
            f"lr {record['lr']:.1e}",
            f"grad norm {_number(record['grad_norm'], '.2f')}",
            f"{self._sum('num_tokens') / seconds:,.0f} tokens/s ({self._sum('num_trained') / seconds:,.0f} trained)",
            f"data wait {self._sum('wait_seconds') / seconds:.0%}",
        ]
        if "mfu" in record:
            parts.append(f"MFU {record['mfu']:.0%}")
        return "  ".join([*parts, f"{timedelta(seconds=round(left))} left"])

    def _sum(self, key: str) -> float:
        return float(sum(record[key] for record in self._last))


def _number(value: float | None, form: str) -> str:
    """A step that is left out may have none."""
    return "none" if value is None else format(value, form)
