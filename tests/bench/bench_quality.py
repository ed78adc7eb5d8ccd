"""Is the model as good? Tree packs against plain padded batches: same examples, same number of steps, three seeds.

    python -m tests.bench.bench_quality                       (about 30 minutes)

SmolLM2-135M, full tuning in bf16 over fp32 master weights, in plain torch: nothing differs but what meets in a forward
pass and, with it, in a step. Held-out rows are scored one by one in padded batches, the same for both.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from instruct_ray.config.train import TrainConfig
from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.worker.lr_schedule import learning_rate_at
from tests.bench import machine
from tests.bench.examples import examples_of, renderer_of, resolve_base
from tests.bench.losses import Tuned
from tests.bench.rows import NoDataError, Row, alpaca, clinc, in_order_of_prepare

ARMS = ("tree packs", "padded batches")
EVALUATION_BATCH = 16
# A difference of means smaller than this many standard errors is none.
NUM_ERRORS = 2.0


@dataclass(frozen=True)
class Case:
    """Rows to train on and to hold out, and how."""

    name: str
    train: list[Example]
    order: list[int]
    """In which `prepare` packs them."""
    held_out: list[Example]
    pack_tokens: int
    packs_per_step: int
    epochs: int
    learning_rate: float


def clinc_case(work: Path, options: argparse.Namespace) -> Case:
    """One instruction: some of CLINC150's intents."""
    rows = clinc()
    intents = sorted({row["output"] for row in rows})[:: max(1, 150 // options.intents)][: options.intents]
    train = [row for row in rows if row["output"] in intents][: options.clinc_rows]
    held_out = [row for row in clinc("test") if row["output"] in intents]
    how = {"pack_tokens": 256, "packs_per_step": 1, "epochs": options.clinc_epochs, "learning_rate": 1e-4}
    return _case("clinc", train, held_out, work, how)


def alpaca_case(work: Path, options: argparse.Namespace) -> Case:
    """Many instructions; rows short enough for the time there is."""
    rows = [row for row in alpaca() if len(row["instruction"] + row["input"] + row["output"]) < 600]
    train, held_out = rows[: options.alpaca_rows], rows[options.alpaca_rows :][:100]
    how = {"pack_tokens": 512, "packs_per_step": 2, "epochs": 1, "learning_rate": 5e-5}
    return _case("alpaca", train, held_out, work, how)


def _case(name: str, train: list[Row], held_out: list[Row], work: Path, how: dict[str, Any]) -> Case:
    renderer = renderer_of(resolve_base(work))
    order = in_order_of_prepare(train)
    return Case(name, examples_of(renderer, train), order, examples_of(renderer, held_out), **how)


def steps_of(case: Case, arm: str, seed: int) -> list[Any]:
    """What each optimizer step computes: some packs, or as many examples, drawn at random."""
    generator = np.random.default_rng(seed)
    packs = list(pack_examples([case.train[index] for index in case.order], case.pack_tokens))
    num_steps = -(-len(packs) // case.packs_per_step)
    items: Sequence[Any] = packs if arm == ARMS[0] else case.train
    steps: list[Any] = []
    for _ in range(case.epochs):
        shares = np.array_split(generator.permutation(len(items)), num_steps)
        steps += [[items[index] for index in share] for share in shares]
    return steps


def train(case: Case, arm: str, seed: int, base: Path) -> Tuned:
    """Tune one model."""
    tuned = Tuned.load(base, torch.bfloat16)
    weights = list(tuned.model.parameters())
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=case.learning_rate, weight_decay=0.0, fused=True)
    schedule = TrainConfig(learning_rate=case.learning_rate)
    steps = steps_of(case, arm, seed)
    for step, items in enumerate(steps):
        if arm == ARMS[0]:
            loss, num_trained = tuned.packed(items), sum(each["num_trained"] for each in items)
        else:
            loss, num_trained = tuned.padded(items), sum(len(each.completion_ids) for each in items)
        (loss / num_trained).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        clip_grad_norm_(masters, schedule.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, len(steps), schedule)
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)
    return tuned


def evaluate(tuned: Tuned, case: Case) -> dict[str, float]:
    """Held-out loss per completion token, and share of rows answered exactly."""
    tuned.model.eval()
    examples = sorted(case.held_out, key=lambda example: example.num_tokens)
    batches = [examples[start : start + EVALUATION_BATCH] for start in range(0, len(examples), EVALUATION_BATCH)]
    loss, num_tokens, num_right = (sum(column) for column in zip(*map(tuned.held_out, batches), strict=True))
    return {"loss": loss / num_tokens, "accuracy": num_right / len(examples)}


def measure(case: Case, base: Path, num_seeds: int) -> list[dict[str, Any]]:
    """All arms, interleaved by seed, and the untuned base."""
    before = evaluate(Tuned.load(base, torch.bfloat16), case)
    machine.say(f"{case.name}, {len(case.train)} rows, {len(steps_of(case, ARMS[0], 0))} steps; untuned: {before}")
    results = [{"data": case.name, "arm": "untuned", "seed": 0, **before}]
    for seed in range(num_seeds):
        for arm in ARMS:
            began = time.perf_counter()
            scores = evaluate(train(case, arm, seed, base), case)
            machine.say(f"{case.name}, {arm}, seed {seed}: {scores} in {time.perf_counter() - began:.0f} s")
            results.append({"data": case.name, "arm": arm, "seed": seed, **scores})
    return results


def summary(results: list[dict[str, Any]], case: Case) -> list[list[object]]:
    """One line for each arm; the verdict compares the means."""
    lines: list[list[object]] = []
    values = {
        arm: {key: [one[key] for one in results if one["arm"] == arm] for key in ("accuracy", "loss")}
        for arm in ("untuned", *ARMS)
    }
    num_steps = len(steps_of(case, ARMS[0], 0))
    for arm, scores in values.items():
        cells = [machine.spread([100 * one for one in scores["accuracy"]], 1), machine.spread(scores["loss"], 4)]
        verdict = "" if arm != ARMS[0] else _verdict(*(values[each]["loss"] for each in ARMS))
        lines.append([case.name, arm, len(case.train), "" if arm == "untuned" else num_steps, *cells, verdict])
    return lines


def _verdict(ours: list[float], plain: list[float]) -> str:
    difference = statistics.mean(ours) - statistics.mean(plain)
    if len(ours) < 2:
        return f"{difference:+.4f}"
    error = (statistics.variance(ours) / len(ours) + statistics.variance(plain) / len(plain)) ** 0.5
    says = "no difference beyond the seeds'" if abs(difference) <= NUM_ERRORS * error else "differs"
    return f"{difference:+.4f} ± {error:.4f}: {says}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=("clinc", "alpaca"), default=("clinc", "alpaca"))
    parser.add_argument("--intents", type=int, default=20)
    parser.add_argument("--clinc-rows", type=int, default=500)
    parser.add_argument("--clinc-epochs", type=int, default=1)
    parser.add_argument("--alpaca-rows", type=int, default=160)
    return parser.parse_args()


def main() -> None:
    """Measure, print one table."""
    options = parse()
    machine.with_environment("tests.bench.bench_quality")
    work = options.out / "work"
    facts, lines, results = machine.facts(), [], []
    base = resolve_base(work).folder
    for name, make in (("clinc", clinc_case), ("alpaca", alpaca_case)):
        if name not in options.data:
            continue
        try:
            case = make(work, options)
        except NoDataError as reason:
            machine.say(f"skipped {name}: {reason}")
            continue
        measured = measure(case, base, options.seeds)
        lines += summary(measured, case)
        results += measured
    header = ["data", "trained as", "rows", "steps", "held-out rows exact, %", "held-out loss", "tree − padded (loss)"]
    machine.publish("quality", options.out, facts, [machine.table(header, lines)], results)


if __name__ == "__main__":
    main()
