"""The `evidence` section: rivals' names, few-shot counts, the retriever's folder."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.evidence.prompts import few_shot_counts

RIVAL = {"name": "gpt", "base_url": "https://api.example.com/v1", "model": "big"}


@pytest.mark.parametrize(
    ("value", "counts"), [(3, (3,)), (0, ()), ([], ()), ([1, 3, 5], (1, 3, 5)), ([3, 1, 3], (3, 1))]
)
def test_few_shot_counts(value: Any, counts: tuple[int, ...]) -> None:
    assert few_shot_counts(EvidenceConfig(num_few_shot=value)) == counts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": [RIVAL, RIVAL]}, "two arms are named gpt"),
        ({"arms": [RIVAL | {"name": "tuned2"}]}, "names that start with zero_shot"),
        ({"arms": [RIVAL | {"base_url": "localhost:8000"}]}, "base_url"),
        ({"num_few_shot": [0, 3]}, "num_few_shot"),
        ({"margin": 1.0}, "margin"),
        ({"metric": "no colon"}, "metric"),
        ({"documents": ["s3://bucket/x"]}, "documents"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvidenceConfig.model_validate(values)


def test_paths_become_absolute() -> None:
    config = EvidenceConfig.model_validate({"documents": ["docs"], "retriever": "models/minilm"})
    assert config.documents == (Path.cwd() / "docs",) and config.retriever == str(Path.cwd() / "models/minilm")
    assert EvidenceConfig().retriever == "bm25"
