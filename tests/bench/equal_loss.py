"""Checks that all trainers see the same tokens and labels and compute the same loss, before they are timed."""

from pathlib import Path

import torch

from instruct_ray.data.packs.tree import pack_examples
from tests.bench.losses import BenchModel
from tests.bench.peers import Peer
from tests.bench.train_sides import Task, as_row, request_peer

NUM_ROWS = 8
# Relative difference of the mean loss in fp32.
TOLERANCE = 1e-4


def check_equal_loss(task: Task, python: Path, peer: Peer, pack_tokens: int) -> dict[str, float]:
    """Compare the fp32 loss of the first rows: in our packs, and in a padded batch of a peer.

    Raises:
        AssertionError: token ids, labels or losses differ.
    """
    examples = task.examples[:NUM_ROWS]
    result = request_peer(task, "loss", python, peer, {"kind": "loss", "examples": examples})
    for example, ids, labels in zip(examples, result["input_ids"], result["labels"], strict=True):
        expected = as_row(example)
        if ids != expected["input_ids"] or labels != expected["labels"]:
            raise AssertionError(f"{peer.name} has different tokens or labels for row {example.row_id} of {task.name}")
    packs = list(pack_examples(examples, pack_tokens))
    with torch.no_grad():
        loss_sum = float(BenchModel.load(task.base, torch.float32).packed_loss(packs))
    ours = loss_sum / sum(pack["num_trained"] for pack in packs)
    difference = abs(ours - result["loss"]) / result["loss"]
    if difference > TOLERANCE:
        raise AssertionError(f"{task.name}: our loss is {ours}, that of {peer.name} is {result['loss']}")
    return {"rows": len(examples), "ours": ours, peer.name: result["loss"], "relative_difference": difference}
