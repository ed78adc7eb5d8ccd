"""The configs for models of 1, 8 and 70 billion parameters: their comments say what `doctor` estimates, and it fits.

After a change of a config or of the estimate, a failing test shows the lines that belong into the file.
"""

import pytest

from instruct_ray.config.load import load_config
from instruct_ray.training.capacity.memory import GIB
from instruct_ray.training.capacity.memory_check import NEARLY_FULL
from tests.jobs.config_sizes import BASES, CONFIGS, USABLE_GIB, ConfigSizes, read_gpus

NAMES = ("1b", "1b-lora", "8b", "8b-lora", "70b", "70b-lora")


@pytest.mark.parametrize("name", NAMES)
def test_config_says_what_it_needs_and_fits(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config, text = load_config(path), path.read_text()
    num_gpus, gigabytes = read_gpus(text)
    usable_gib = USABLE_GIB[gigabytes]
    sizes = ConfigSizes(config)
    assert sizes.num_full_parameters == BASES[config.model.base][1]
    assert config.train.num_workers == num_gpus
    assert sizes.estimate.device_total < NEARLY_FULL * usable_gib * GIB
    expected = "\n".join(sizes.lines(usable_gib))
    assert f"\n{expected}\nrun:" in text, f"{path.name} should say:\n{expected}"
