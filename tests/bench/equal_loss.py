"""Before anything is timed: both sides see the same tokens, train the same ones, and get the same loss."""

from collections.abc import Sequence
from pathlib import Path

import torch

from instruct_ray.data.packing import Example, pack
from instruct_ray.training.loss import pack_loss
from instruct_ray.training.model import load_model
from tests.bench.train_sides import Task, as_trl, ask_trl

NUM_ROWS = 8
# Relative, of the mean loss in fp32.
TOLERANCE = 1e-4


def check_equal_loss(task: Task, python: Path, pack_tokens: int) -> dict[str, float]:
    """Compare the loss of the first rows: our packs of them against TRL's padded batch, in fp32.

    Raises:
        AssertionError: token ids, labels or losses differ.
    """
    examples = task.examples[:NUM_ROWS]
    answer = ask_trl(task, "loss", python, {"kind": "loss", "examples": examples})
    for example, ids, labels in zip(examples, answer["input_ids"], answer["labels"], strict=True):
        expected = as_trl(example)
        if ids != expected["input_ids"] or labels != expected["labels"]:
            raise AssertionError(f"TRL sees other tokens or labels for row {example.row_id} of {task.name}")
    mine = our_loss(task.base, examples, pack_tokens)
    difference = abs(mine - answer["loss"]) / answer["loss"]
    if difference > TOLERANCE:
        raise AssertionError(f"{task.name}: our loss {mine} is not TRL's {answer['loss']}")
    return {"rows": len(examples), "ours": mine, "trl": answer["loss"], "relative_difference": difference}


def our_loss(base: Path, examples: Sequence[Example], pack_tokens: int) -> float:
    """Mean loss of the examples' completion tokens, computed on tree packs in fp32."""
    model = load_model(base, None, torch.float32, 0)
    packs = list(pack(examples, pack_tokens))
    with torch.no_grad():
        total = sum(float(pack_loss(model, each, torch.device("cpu"))) for each in packs)
    return total / sum(each["num_trained"] for each in packs)
