"""Shared fixtures: a tiny tokenizer, base model and triples, a Ray cluster, and a tuned run."""

import os

# Before Ray is imported, so that it writes no token into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
# No digest of a test's folder is left in the home folder.
os.environ["INSTRUCT_RAY_CACHE"] = os.devnull

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest
import ray
from transformers import PreTrainedTokenizerFast

from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from tests import tiny

# A loaded machine is no fault of the code.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The Hugging Face folder of a random Llama with two layers."""
    return tiny.save_base(tmp_path_factory.mktemp("base"), tokenizer)


@pytest.fixture(scope="session")
def triples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 triples with three instructions; some have no input."""
    return tiny.write_triples(tmp_path_factory.mktemp("triples") / "triples.jsonl")


@pytest.fixture
def make_config(tmp_path: Path, base_folder: Path, triples_file: Path) -> Callable[..., Config]:
    """Builds configs as `tiny.configure` does, with a run folder of this test."""
    return partial(tiny.configure, tmp_path / "runs", base_folder, triples_file)


@pytest.fixture(scope="session")
def ray_4_cpus() -> Iterator[None]:
    """One local Ray cluster with 4 CPUs for all tests that need one."""
    _start_ray()
    yield
    ray.shutdown()


@pytest.fixture
def no_ray(ray_4_cpus: None) -> Iterator[None]:
    """No cluster, while a test runs that starts one itself."""
    ray.shutdown()
    yield
    _start_ray()


def _start_ray() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path, ray_4_cpus: None) -> Config:
    """A run with two workers, prepared and tuned. Tests may add files to its folder but change none."""
    train = {"epochs": 4, "examples_per_step": 12, "checkpoint_every": 4, "learning_rate": 1e-2, "num_workers": 2}
    config = tiny.configure(tmp_path_factory.mktemp("runs"), base_folder, triples_file, train=train)
    run_prepare(config)
    run_tune(config)
    return config


@pytest.fixture(scope="session")
def registered(tuned: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A copy of the tuned run, evaluated and registered as version 1. Tests that move its alias put it back."""
    storage = tmp_path_factory.mktemp("registered")
    shutil.copytree(RunFolder.from_config(tuned).path, storage / tuned.run.name)
    # The run's metrics.
    shutil.copy(tuned.run.storage / "mlflow.db", storage)
    config = tuned.model_copy(update={"run": tuned.run.model_copy(update={"storage": storage})})
    run_evaluate(config)
    run_register(config)
    return config
