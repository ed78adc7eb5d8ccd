"""What the limits of an evaluation did to its answers, in sentences. Pure."""

import math
from collections.abc import Mapping, Sequence

from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.inference.engine import SamplingParams


def limit_answers(
    prompts: Sequence[Sequence[int]], context: int, max_new_tokens: int, grammar: str | None = None
) -> list[SamplingParams]:
    """Greedy decoding by the grammar, up to `max_new_tokens` or to the end of the context."""
    return [SamplingParams(min(max_new_tokens, context - len(prompt)), grammar=grammar) for prompt in prompts]


def describe_labels(labels: Sequence[str] | None) -> list[str]:
    """That answers were limited to labels; empty if they were free."""
    if labels is None:
        return []
    return [f"answers of base model, tuned model and champion are one of {len(labels)} labels (evidence.only_labels)"]


def describe_sample(num_rows: int, num_held_out: int, max_rows: int) -> list[str]:
    """That not all held-out rows were answered, and what interval the answered ones give; empty if all were."""
    if num_rows == num_held_out:
        return []
    points = 100 * 1.96 * math.sqrt(0.25 / num_rows)
    return [
        f"{num_rows} of {num_held_out} held-out rows were answered (evidence.max_rows={max_rows}), chosen by the seed: "
        f"an accuracy of 50 % has an interval of about ±{points:.1f} points on them"
    ]


def describe_limits(
    renderer: Renderer, rows: Sequence[Triple], num_cut: Mapping[str, int], max_new_tokens: int
) -> list[str]:
    """Which answers were cut, and which expected outputs are longer than any answer can be.

    Args:
        renderer: the renderer of the tuned model.
        rows: the answered rows.
        num_cut: answers that reached the limit of their length, by arm.
        max_new_tokens: that limit.
    """
    notes = []
    cut = [f"{count} of {len(rows)} answers of {name}" for name, count in num_cut.items() if count]
    if cut:
        notes.append(f"cut at evidence.max_new_tokens={max_new_tokens}: {', '.join(cut)}")
    # Without its stop token.
    lengths = [len(renderer.completion(row.output)) - 1 for row in rows]
    num_longer = sum(length > max_new_tokens for length in lengths)
    if num_longer:
        notes.append(
            f"{num_longer} of {len(rows)} expected outputs are longer than evidence.max_new_tokens={max_new_tokens} "
            f"(up to {max(lengths)} tokens), so no answer to them can count as right; raise it under another run.name"
        )
    return notes
