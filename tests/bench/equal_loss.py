"""Before anything is timed: all sides see the same tokens, train the same ones, and get the same loss."""

from pathlib import Path

import torch

from instruct_ray.data.packs.tree import pack_examples
from tests.bench.losses import Tuned
from tests.bench.peers import Peer
from tests.bench.train_sides import Task, as_row, ask_peer

NUM_ROWS = 8
# Relative, of the mean loss in fp32.
TOLERANCE = 1e-4


def check_equal_loss(task: Task, python: Path, peer: Peer, pack_tokens: int) -> dict[str, float]:
    """Compare the loss of the first rows: our packs of them against a peer's padded batch, in fp32.

    Raises:
        AssertionError: token ids, labels or losses differ.
    """
    examples = task.examples[:NUM_ROWS]
    answer = ask_peer(task, "loss", python, peer, {"kind": "loss", "examples": examples})
    for example, ids, labels in zip(examples, answer["input_ids"], answer["labels"], strict=True):
        expected = as_row(example)
        if ids != expected["input_ids"] or labels != expected["labels"]:
            raise AssertionError(f"{peer.name} sees other tokens or labels for row {example.row_id} of {task.name}")
    packs = list(pack_examples(examples, pack_tokens))
    with torch.no_grad():
        ours = float(Tuned.load(task.base, torch.float32).packed(packs)) / sum(each["num_trained"] for each in packs)
    difference = abs(ours - answer["loss"]) / answer["loss"]
    if difference > TOLERANCE:
        raise AssertionError(f"{task.name}: our loss {ours} is not {answer['loss']}, that of {peer.name}")
    return {"rows": len(examples), "ours": ours, peer.name: answer["loss"], "relative_difference": difference}
