"""Weight decay leaves norms and biases alone; runs of earlier versions go on as they began."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from instruct_ray.training.distributed.engine import _parameter_groups
from tests.training.tiny_models import CONFIGS, make_model

DECAY = 0.1


def decays(model: nn.Module) -> dict[str, float]:
    """The weight decay of each trained parameter."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(_parameter_groups([*named.values()], DECAY), weight_decay=DECAY)
    by_id = {id(tensor): group["weight_decay"] for group in optimizer.param_groups for tensor in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in named.items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    model = make_model(CONFIGS[name])
    for name, decay in decays(model).items():
        is_vector = name.endswith("bias") or "norm" in name or ".ln_" in name
        assert decay == (0.0 if is_vector else DECAY), name


def test_norms_stay_as_they_are_in_a_step_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(_parameter_groups([*model.parameters()], DECAY), lr=0.5, weight_decay=DECAY)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight"}


def test_adapters_and_runs_without_decay_have_one_group() -> None:
    adapter = get_peft_model(make_model(CONFIGS["llama"]), LoraConfig(r=4, target_modules=["q_proj"]))
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    assert len(_parameter_groups(trained, DECAY)) == 1
    # Their checkpoints have the same form as those of earlier versions.
    assert _parameter_groups([*adapter.parameters()], 0.0) == [{"params": [*adapter.parameters()]}]


def test_vectors_alone_do_not_decay() -> None:
    assert decays(nn.LayerNorm(2)) == {"weight": 0.0, "bias": 0.0}
