"""After how many requests tuning is paid back by shorter prompts. Pure."""

import math
from collections.abc import Mapping
from typing import Any

from instruct_ray.evidence.results.figures import tokens_per_request

# The backward pass computes about twice as much as the forward pass.
TRAINING_FACTOR = 3
RULE = (
    f"Training computes about {TRAINING_FACTOR} times as much for a token as answering does (forward and backward "
    f"pass), so tuning is paid back after {TRAINING_FACTOR} × trained tokens / (tokens per request of the best "
    "prompting arm − tokens per request of the tuned model) requests; tokens of prompt and answer count alike."
)


def cost_figures(
    arms: Mapping[str, Mapping[str, Any]], best_prompting: str | None, tuned: str, trained_tokens: int
) -> dict[str, Any]:
    """The break-even point; null where the tuned model's requests are not shorter."""
    saved = 0.0
    if best_prompting is not None:
        saved = tokens_per_request(arms[best_prompting]) - tokens_per_request(arms[tuned])
    return {
        "rule": RULE,
        "trained_tokens": trained_tokens,
        "saved_tokens_per_request": saved,
        "break_even_requests": math.ceil(TRAINING_FACTOR * trained_tokens / saved) if saved > 0 else None,
    }
