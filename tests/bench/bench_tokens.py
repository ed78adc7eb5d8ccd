"""Measures computed tokens per row token: prefix trees, ordinary packing and padding.

python -m tests.bench.bench_tokens                (a minute; without Ray)
"""

import random
from collections.abc import Sequence
from typing import Any

from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from tests.bench import machine
from tests.bench.examples import make_examples, make_renderer, resolve_base
from tests.bench.rows import MissingDataError, Row, load_real, sort_as_prepare

# Data set, tokens per pack, and the highest ratio of computed tokens to row tokens that meets the target.
CASES = (("clinc", 512, 0.36), ("alpaca", 512, 0.94), ("alpaca", 4096, 0.88))
BATCH = 8


def measure(examples: Sequence[Example], order: Sequence[int], pack_tokens: int) -> dict[str, float]:
    """Count the tokens of one data set at one pack size; rows longer than a pack are skipped in all columns."""
    fitting = [examples[index] for index in order if examples[index].num_inputs <= pack_tokens]
    row_tokens = sum(example.num_tokens for example in fitting)
    packs = list(pack_examples(fitting, pack_tokens))
    if sum(len(pack["row_ids"]) for pack in packs) != len(fitting):
        raise AssertionError("the packs don't contain every example exactly once")
    return {
        "rows": len(fitting),
        "num_skipped": len(examples) - len(fitting),
        "packs": len(packs),
        "row_tokens": row_tokens,
        "tree": sum(len(pack["input_ids"]) for pack in packs) / row_tokens,
        "packing": sum(example.num_inputs for example in fitting) / row_tokens,
        "padding": _num_padded_tokens(fitting) / row_tokens,
    }


def _num_padded_tokens(examples: Sequence[Example]) -> int:
    """Count the tokens of random batches whose rows are padded to the longest of the batch."""
    lengths = [example.num_tokens for example in examples]
    random.Random(0).shuffle(lengths)
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    return sum(max(batch) * len(batch) for batch in batches)


def main() -> None:
    """Measure every case and print the table."""
    out = machine.make_parser(__doc__).parse_args().out
    facts = machine.describe_machine()
    renderer = make_renderer(resolve_base(out / "work"))
    lines, measured = [], []
    for name, pack_tokens, target in CASES:
        try:
            rows: list[Row] = load_real(name)
        except MissingDataError as error:
            machine.log(f"skipped {name}: {error}")
            continue
        machine.log(f"{name}, {pack_tokens} tokens per pack")
        counts: dict[str, Any] = measure(make_examples(renderer, rows), sort_as_prepare(rows), pack_tokens)
        measured.append({"data": name, "pack_tokens": pack_tokens, "target": target, **counts})
        verdict = "yes" if counts["tree"] <= target else "NO"
        lines.append(
            [
                name,
                pack_tokens,
                f"{counts['rows']:,}",
                counts["num_skipped"],
                f"{counts['row_tokens']:,}",
                *(f"{counts[column]:.3f}" for column in ("tree", "packing", "padding")),
                f"≤ {target}: {verdict}",
            ]
        )
    header = ["data", "pack tokens", "rows", "skipped (too long)", "tokens in the rows"]
    header += ["**tree**", "ordinary packing", f"padding, random batches of {BATCH}", "target"]
    machine.publish("tokens", out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
