"""Every architecture passes all stages with every method of tuning, or is refused before training with a sentence.

SWEEP_RESULTS=FOLDER keeps the results there; an architecture whose result is there is not run again.
`python -m tests.sweep FOLDER` writes the table of README.md from them.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from tests.sweep.architectures import ARCHITECTURES, save_architecture
from tests.sweep.stages import METHODS, configure, run_stages
from tests.sweep.table import Result, read_results
from tests.training.processes import process_group

# 41 architectures, each trained three times.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("SWEEP_RESULTS")
    return Path(folder).absolute() if folder else tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process group that DeepSpeed needs."""
    with process_group(0, 1, tmp_path_factory.mktemp("rank")):
        yield
    assert not dist.is_initialized()


@pytest.mark.usefixtures("ray_4_cpus", "one_rank")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_passes_all_stages_or_is_refused(
    name: str, results_dir: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = results_dir / f"{name}.json"
    if not file.is_file():
        started = time.perf_counter()
        base = save_architecture(name, tmp_path / "base", tokenizer)
        outcomes = {method: run_stages(configure(tmp_path, base, method)) for method in METHODS}
        result = Result(name, outcomes, round(time.perf_counter() - started))
        results_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result.__dict__))
    outcomes = read_results(results_dir)[name].outcomes
    assert set(outcomes) == set(METHODS)
    for outcome in outcomes.values():
        assert outcome in ("packed", "padded") or outcome.startswith("refused: model."), outcome
