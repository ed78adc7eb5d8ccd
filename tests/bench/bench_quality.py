"""Compares the quality of models trained on tree packs and on padded batches.

    python -m tests.bench.bench_quality                       (about 30 minutes)

The same examples, the same number of steps, three seeds. SmolLM2-135M, full fine-tuning in bf16 with fp32 master
weights, in plain torch: only which examples share a forward pass and a step differs. Held-out rows are scored in padded
batches for both.
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
from tests.bench.examples import make_examples, make_renderer, resolve_base
from tests.bench.losses import BenchModel
from tests.bench.rows import MissingDataError, Row, alpaca, clinc, sort_as_prepare

VARIANTS = ("tree packs", "padded batches")
BASE = "base model"
EVALUATION_BATCH = 16
# Differences of means up to this many standard errors count as noise.
NUM_ERRORS = 2.0


@dataclass(frozen=True)
class Case:
    """Training rows, held-out rows and hyperparameters."""

    name: str
    train: list[Example]
    order: list[int]
    """Indices of `train` in the order in which `prepare` packs them."""
    held_out: list[Example]
    pack_tokens: int
    packs_per_step: int
    epochs: int
    learning_rate: float


def make_clinc_case(work: Path, options: argparse.Namespace) -> Case:
    """Build the case with one instruction: some of the intents of CLINC150."""
    rows = clinc()
    intents = sorted({row["output"] for row in rows})[:: max(1, 150 // options.intents)][: options.intents]
    train = [row for row in rows if row["output"] in intents][: options.clinc_rows]
    held_out = [row for row in clinc("test") if row["output"] in intents]
    hyperparameters = {"pack_tokens": 256, "packs_per_step": 1, "epochs": options.clinc_epochs, "learning_rate": 1e-4}
    return _make_case("clinc", train, held_out, work, hyperparameters)


def make_alpaca_case(work: Path, options: argparse.Namespace) -> Case:
    """Build the case with many instructions; only short rows, to save time."""
    rows = [row for row in alpaca() if len(row["instruction"] + row["input"] + row["output"]) < 600]
    train, held_out = rows[: options.alpaca_rows], rows[options.alpaca_rows :][:100]
    hyperparameters = {"pack_tokens": 512, "packs_per_step": 2, "epochs": 1, "learning_rate": 5e-5}
    return _make_case("alpaca", train, held_out, work, hyperparameters)


def _make_case(name: str, train: list[Row], held_out: list[Row], work: Path, hyperparameters: dict[str, Any]) -> Case:
    renderer = make_renderer(resolve_base(work))
    order = sort_as_prepare(train)
    return Case(name, make_examples(renderer, train), order, make_examples(renderer, held_out), **hyperparameters)


def make_steps(case: Case, variant: str, seed: int) -> list[Any]:
    """Build the random batches of the optimizer steps: packs, or on average as many examples."""
    generator = np.random.default_rng(seed)
    packs = list(pack_examples([case.train[index] for index in case.order], case.pack_tokens))
    num_steps = -(-len(packs) // case.packs_per_step)
    items: Sequence[Any] = packs if variant == VARIANTS[0] else case.train
    steps: list[Any] = []
    for _ in range(case.epochs):
        batches = np.array_split(generator.permutation(len(items)), num_steps)
        steps += [[items[index] for index in batch] for batch in batches]
    return steps


def train(case: Case, variant: str, seed: int, base: Path) -> BenchModel:
    """Train one model."""
    model = BenchModel.load(base, torch.bfloat16)
    weights = list(model.module.parameters())
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=case.learning_rate, weight_decay=0.0, fused=True)
    schedule = TrainConfig(learning_rate=case.learning_rate)
    steps = make_steps(case, variant, seed)
    for step, items in enumerate(steps):
        if variant == VARIANTS[0]:
            loss, num_target = model.packed_loss(items), sum(pack["num_trained"] for pack in items)
        else:
            loss, num_target = model.padded_loss(items), sum(len(example.completion_ids) for example in items)
        (loss / num_target).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        clip_grad_norm_(masters, schedule.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, len(steps), schedule)
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)
    return model


def evaluate(model: BenchModel, case: Case) -> dict[str, float]:
    """Compute the held-out loss per completion token, and the fraction of exact completions."""
    model.module.eval()
    examples = sorted(case.held_out, key=lambda example: example.num_tokens)
    batches = [examples[start : start + EVALUATION_BATCH] for start in range(0, len(examples), EVALUATION_BATCH)]
    loss, num_tokens, num_exact = (sum(column) for column in zip(*map(model.score_held_out, batches), strict=True))
    return {"loss": loss / num_tokens, "accuracy": num_exact / len(examples)}


def measure(case: Case, base: Path, num_seeds: int) -> list[dict[str, Any]]:
    """Train and evaluate all variants, interleaved by seed, and evaluate the base model."""
    base_scores = evaluate(BenchModel.load(base, torch.bfloat16), case)
    num_steps = len(make_steps(case, VARIANTS[0], 0))
    machine.log(f"{case.name}, {len(case.train)} rows, {num_steps} steps; base model: {base_scores}")
    results = [{"data": case.name, "variant": BASE, "seed": 0, **base_scores}]
    for seed in range(num_seeds):
        for variant in VARIANTS:
            start = time.perf_counter()
            scores = evaluate(train(case, variant, seed, base), case)
            machine.log(f"{case.name}, {variant}, seed {seed}: {scores} in {time.perf_counter() - start:.0f} s")
            results.append({"data": case.name, "variant": variant, "seed": seed, **scores})
    return results


def summarize(results: list[dict[str, Any]], case: Case) -> list[list[object]]:
    """Build one table row per variant; the verdict compares the means of the losses."""
    lines: list[list[object]] = []
    values = {
        variant: {
            key: [result[key] for result in results if result["variant"] == variant] for key in ("accuracy", "loss")
        }
        for variant in (BASE, *VARIANTS)
    }
    num_steps = len(make_steps(case, VARIANTS[0], 0))
    for variant, scores in values.items():
        cells = [
            machine.spread([100 * accuracy for accuracy in scores["accuracy"]], 1),
            machine.spread(scores["loss"], 4),
        ]
        verdict = "" if variant != VARIANTS[0] else _verdict(*(values[name]["loss"] for name in VARIANTS))
        lines.append([case.name, variant, len(case.train), "" if variant == BASE else num_steps, *cells, verdict])
    return lines


def _verdict(packed: list[float], padded: list[float]) -> str:
    difference = statistics.mean(packed) - statistics.mean(padded)
    if len(packed) < 2:
        return f"{difference:+.4f}"
    error = (statistics.variance(packed) / len(packed) + statistics.variance(padded) / len(padded)) ** 0.5
    verdict = "no significant difference" if abs(difference) <= NUM_ERRORS * error else "differs"
    return f"{difference:+.4f} ± {error:.4f}: {verdict}"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=("clinc", "alpaca"), default=("clinc", "alpaca"))
    parser.add_argument("--intents", type=int, default=20)
    parser.add_argument("--clinc-rows", type=int, default=500)
    parser.add_argument("--clinc-epochs", type=int, default=1)
    parser.add_argument("--alpaca-rows", type=int, default=160)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    machine.restart_with_environment("tests.bench.bench_quality")
    work = options.out / "work"
    facts, lines, results = machine.describe_machine(), [], []
    base = resolve_base(work).folder
    for name, make_case in (("clinc", make_clinc_case), ("alpaca", make_alpaca_case)):
        if name not in options.data:
            continue
        try:
            case = make_case(work, options)
        except MissingDataError as error:
            machine.log(f"skipped {name}: {error}")
            continue
        case_results = measure(case, base, options.seeds)
        lines += summarize(case_results, case)
        results += case_results
    header = ["data", "trained as", "rows", "steps", "exact held-out rows, %", "held-out loss", "tree − padded (loss)"]
    machine.publish("quality", options.out, facts, [machine.table(header, lines)], results)


if __name__ == "__main__":
    main()
