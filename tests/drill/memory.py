"""A worker that runs out of memory, again and again."""

from instruct_ray.run.folder import RunFolder
from tests.drill.lab import Figures, Lab


def out_of_memory(lab: Lab) -> Figures:
    """It is tried again so often as `train.max_failures` says, and what can be done about it is said."""
    config = lab.start("memory", max_failures=1)
    lab.arm("memory")
    said = ""
    with lab.watch(config) as watch:
        try:
            lab.run(config)
        except RuntimeError as error:
            said = str(error)
    lab.disarm("memory")
    assert "a worker ran out of memory: lower data.pack_tokens" in said, said
    assert not RunFolder.from_config(config).model_dir.exists()
    found = lab.figures(config, watch)
    # Two attempts, each up to its first checkpoint.
    assert 16 <= found.executed <= 2 * found.planned, found.executed
    return Figures(says=f"2 attempts, then: {said.split(':')[1].strip()}")
