"""The validation task: it waits for its checkpoint for a bounded time, and unpickles only what the ranks wrote."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from instruct_ray.config.train import TrainConfig, ValidationConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.training.checkpoint.manifest import ShardManifest, commit_shards, step_tag
from instruct_ray.training.distributed.checkpoint_weights import RANK_0_WEIGHTS, pickled_files
from instruct_ray.training.model.trained_parts import freeze_other_modalities
from instruct_ray.training.validation.task import ValidationSpec, validate_checkpoint
from tests.sweep.architectures import save_architecture


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._path,)


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., ValidationSpec]:
    def make(zero_stage: int = 2, **settings: float) -> ValidationSpec:
        return ValidationSpec(
            base_dir=tmp_path,
            adapter_dir=None,
            contract_file=tmp_path,
            rows_file=tmp_path,
            lora=None,
            train=TrainConfig.model_validate({"zero_stage": zero_stage}),
            validation=ValidationConfig.model_validate(settings),
            seed=0,
            validation_dir=tmp_path / "validation",
        )

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A committed checkpoint of one rank."""
    shards = tmp_path / "shards" / step_tag(4)
    shards.mkdir(parents=True)
    for name in (RANK_0_WEIGHTS, "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (shards / name).write_bytes(pickle.dumps({}))
    manifest = ShardManifest(step=4, rank=0, world_size=1, contract_digest="digest", files={})
    commit_shards(tmp_path / "shards", tmp_path / "checkpoint", manifest)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("zero_stage", "name", "problem"),
    [
        (2, RANK_0_WEIGHTS, "has [0-9]+ bytes, not"),
        (3, "zero_pp_rank_0_mp_rank_00_optim_states.pt", "has [0-9]+ bytes, not"),
        (3, "zero_pp_rank_1_mp_rank_00_optim_states.pt", "is in no manifest"),
    ],
)
def test_file_that_the_ranks_did_not_write_is_not_unpickled(
    checkpoint: Path, make_spec: Callable[..., ValidationSpec], zero_stage: int, name: str, problem: str
) -> None:
    marker = checkpoint.with_name("unpickled")
    (checkpoint / step_tag(4) / name).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match=rf"{name} {problem}"):
        validate_checkpoint(checkpoint, make_spec(zero_stage), checkpoint.with_name("model"), None)
    assert not marker.exists()
    assert not checkpoint.with_name("model").exists()
    # The pickle does what the test looks for.
    pickle.loads((checkpoint / step_tag(4) / name).read_bytes())
    assert marker.exists()


def test_only_files_that_are_read_are_checked(checkpoint: Path) -> None:
    assert pickled_files(checkpoint, step_tag(4), zero_stage=1) == [f"{step_tag(4)}/{RANK_0_WEIGHTS}"]
    assert len(pickled_files(checkpoint, step_tag(4), zero_stage=3)) == 2


def test_checkpoint_that_is_never_committed_is_given_up(
    tmp_path: Path, make_spec: Callable[..., ValidationSpec]
) -> None:
    with pytest.raises(TimeoutError, match=r"checkpoint was not committed within 0\.3 s"):
        validate_checkpoint(tmp_path / "checkpoint", make_spec(max_wait_seconds=0.3), tmp_path / "model", None)


def test_model_of_a_checkpoint_has_the_frozen_weights_too(
    tmp_path: Path, make_spec: Callable[..., ValidationSpec], tokenizer: PreTrainedTokenizerFast
) -> None:
    """The checkpoint of a model for images and text holds only what was trained."""
    base = save_architecture("gemma3", tmp_path / "base", tokenizer)
    expected = AutoModelForImageTextToText.from_pretrained(base)
    freeze_other_modalities(expected)
    trained = {name: parameter for name, parameter in expected.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    shards = tmp_path / "shards" / step_tag(4)
    shards.mkdir(parents=True)
    torch.save({"module": {name: tensor.detach() for name, tensor in trained.items()}}, shards / RANK_0_WEIGHTS)
    manifest = ShardManifest(step=4, rank=0, world_size=1, contract_digest="digest", files={})
    commit_shards(tmp_path / "shards", tmp_path / "checkpoint", manifest)
    derive_renderer(base, None).contract.save(tmp_path / "contract.json")
    spec = make_spec().model_copy(update={"base_dir": base, "contract_file": tmp_path / "contract.json"})
    validate_checkpoint(tmp_path / "checkpoint", spec, tmp_path / "model", None)
    written = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    assert written.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(written[name].float(), tensor, rtol=1e-2, atol=1e-2)
