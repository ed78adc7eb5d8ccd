"""The validation loss that the ranks compute: the same for any number of ranks, without dropout, without gradients."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.data.sources.triple import Triple
from instruct_ray.training.validation import loss as loss_module
from instruct_ray.training.validation.loss import ValidationLoss
from instruct_ray.training.validation.rows import sample_rows


class FakeEngine:
    """A model of dropout alone, which must be off."""

    def __init__(self) -> None:
        self.model = nn.Dropout(0.5)
        self.device = torch.device("cpu")


def pack_loss(model: nn.Module, pack: Pack, device: torch.device) -> tuple[Tensor, int]:
    """The sum of the target tokens over 7, if dropout is off; a pack without targets has no loss."""
    assert not torch.is_grad_enabled()
    targets = torch.as_tensor(pack["labels"])
    return model(torch.where(targets >= 0, targets, 0).float() / 7).sum(), len(targets)


@pytest.mark.parametrize("num_packs", [1, 4, 5])
def test_loss_is_bitwise_the_same_for_any_number_of_ranks(num_packs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(f"row-{n}", [1, 2, 3], [n * 1001 + 4, n + 5, 6]) for n in range(num_packs)]
    packs = list(pack_examples(examples, 5))
    assert len(packs) == num_packs
    results = set()
    for world_size in (1, 2, 3):
        engines: list[Any] = [FakeEngine() for _ in range(world_size)]
        ranks = [ValidationLoss(packs, pack_loss, rank, world_size) for rank in range(world_size)]
        gathered: list[list[float]] = []
        monkeypatch.setattr(
            loss_module, "gather_objects", lambda value, gathered=gathered: [gathered.append(value), []][1:]
        )
        for rank, engine in zip(ranks, engines, strict=True):
            rank.compute(engine)
        # All ranks run the same number of forward passes.
        assert {len(losses) for losses in gathered} == {math.ceil(num_packs / world_size)}
        monkeypatch.setattr(loss_module, "gather_objects", lambda value, gathered=gathered: gathered)
        results |= {rank.compute(engine) for rank, engine in zip(ranks, engines, strict=True)}
        assert all(engine.model.training for engine in engines)
    expected = sum((n * 1001 + 4) + (n + 5) + 6 for n in range(num_packs)) / 7 / (3 * num_packs)
    assert len(results) == 1
    assert results.pop() == pytest.approx(expected)


def test_rows_are_sampled_by_their_ids_and_read_line_by_line(tmp_path: Path) -> None:
    """A text may contain characters that end a line elsewhere."""
    file = tmp_path / "rows.jsonl"
    triples = [Triple(id=str(n), instruction="a\u2028b", input="", output=str(n)) for n in range(50)]
    rows = [json.dumps(triple.dump(), ensure_ascii=False) + "\n" for triple in triples]
    file.write_text("".join(rows), encoding="utf-8")
    sampled = [row.id for row in sample_rows(file, 5)]
    file.write_text("".join(reversed(rows)), encoding="utf-8")
    assert [row.id for row in sample_rows(file, 5)] == sampled
    assert len({row.id for row in sample_rows(file, 100)}) == 50
