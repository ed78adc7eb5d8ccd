"""A Ray cluster with a GPU, and a prepared run on it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from transformers import PreTrainedTokenizerFast

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from tests import tiny
from tests.fakes import ray_is_running


@pytest.fixture(scope="session")
def ray_with_gpu() -> Iterator[None]:
    """A local Ray cluster with a GPU, whose workers choose DeepSpeed's accelerator as on a user's machine."""
    with pytest.MonkeyPatch.context() as patch:
        # Set for the tests on CPUs; Ray's workers inherit it.
        patch.delenv("DS_ACCELERATOR", raising=False)
        ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def flex_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama whose heads are large enough for FlexAttention."""
    return tiny.save_base(tmp_path_factory.mktemp("flex_base"), tokenizer, head_dim=16)


@pytest.fixture(scope="session")
def configure_run(
    tmp_path_factory: pytest.TempPathFactory, flex_base: Path, triples_file: Path, ray_with_gpu: None
) -> Callable[..., Config]:
    """Makes a prepared run with given sections in its config; the rows are prepared once."""
    prepared = tiny.configure(tmp_path_factory.mktemp("prepared"), flex_base, triples_file)
    prepare(prepared, ray_is_running)

    def configure(**sections: dict[str, Any]) -> Config:
        storage = tmp_path_factory.mktemp("runs")
        shutil.copytree(RunFolder.from_config(prepared).path, storage / prepared.run.name)
        config = tiny.configure(storage, flex_base, triples_file, **sections)
        prepare(config, ray_is_running)
        return config

    return configure
