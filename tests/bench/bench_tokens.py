"""Tokens computed for each token in the rows: prefix trees, against ordinary packing and against padding.

python -m tests.bench.bench_tokens                (a minute; pure functions, no Ray)
"""

import random
from collections.abc import Sequence
from typing import Any

from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from tests.bench import machine
from tests.bench.examples import examples_of, renderer_of, resolve_base
from tests.bench.rows import NoDataError, Row, in_order_of_prepare, real

# Data, tokens of a pack, and the most tokens per row token that we allow ourselves.
CASES = (("clinc", 512, 0.36), ("alpaca", 512, 0.94), ("alpaca", 4096, 0.88))
BATCH = 8


def measure(examples: Sequence[Example], order: Sequence[int], pack_tokens: int) -> dict[str, float]:
    """Count one data set at one pack size; rows longer than a pack are left out of all columns alike."""
    fitting = [examples[index] for index in order if examples[index].num_inputs <= pack_tokens]
    row_tokens = sum(example.num_tokens for example in fitting)
    packs = list(pack_examples(fitting, pack_tokens))
    if sum(len(p["row_ids"]) for p in packs) != len(fitting):
        raise AssertionError("an example is missing from the packs, or in two")
    return {
        "rows": len(fitting),
        "left_out": len(examples) - len(fitting),
        "packs": len(packs),
        "row_tokens": row_tokens,
        "tree": sum(len(p["input_ids"]) for p in packs) / row_tokens,
        "packing": sum(example.num_inputs for example in fitting) / row_tokens,
        "padding": _padded(fitting) / row_tokens,
    }


def _padded(examples: Sequence[Example]) -> int:
    """Tokens of random batches, each row padded to the longest of its batch."""
    lengths = [example.num_tokens for example in examples]
    random.Random(0).shuffle(lengths)
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    return sum(max(batch) * len(batch) for batch in batches)


def main() -> None:
    """Measure every case and print one table."""
    out = machine.arguments(__doc__).parse_args().out
    facts = machine.facts()
    renderer = renderer_of(resolve_base(out / "work"))
    lines, measured = [], []
    for name, pack_tokens, target in CASES:
        try:
            rows: list[Row] = real(name)
        except NoDataError as reason:
            machine.say(f"skipped {name}: {reason}")
            continue
        machine.say(f"{name}, {pack_tokens} tokens a pack")
        counts: dict[str, Any] = measure(examples_of(renderer, rows), in_order_of_prepare(rows), pack_tokens)
        measured.append({"data": name, "pack_tokens": pack_tokens, "target": target, **counts})
        verdict = "yes" if counts["tree"] <= target else "NO"
        lines.append(
            [
                name,
                pack_tokens,
                f"{counts['rows']:,}",
                counts["left_out"],
                f"{counts['row_tokens']:,}",
                *(f"{counts[column]:.3f}" for column in ("tree", "packing", "padding")),
                f"≤ {target}: {verdict}",
            ]
        )
    header = ["data", "pack tokens", "rows", "longer: left out", "tokens in the rows"]
    header += ["**tree**", "ordinary packing", f"padding, random batches of {BATCH}", "target"]
    machine.publish("tokens", out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
