"""driver: decides which rows of the embedding a LoRA run trains; fixed once a run has started."""

import json

from instruct_ray.base_model.untrained_tokens import read_adapter_token_ids
from instruct_ray.data.open_run import OpenRun
from instruct_ray.files import atomic_write_json
from instruct_ray.run.frozen import read_frozen_section

# In the run folder: the ids. Checkpoints hold these rows, so a resumed run must train the same ones.
TRAINED_TOKENS_FILE = "trained_tokens.json"


def resolve_trained_tokens(run: OpenRun) -> tuple[int, ...]:
    """The ids of the tokens whose rows a run trains besides its adapter, in ascending order.

    Raises:
        InputError: the base model or its chat template can't be used.
    """
    lora, record = run.config.model.lora, run.folder.path / TRAINED_TOKENS_FILE
    if lora is None:
        return ()
    if record.is_file():
        return tuple(json.loads(record.read_text())["token_ids"])
    if run.base_model.adapter is not None:
        return read_adapter_token_ids(run.base_model.adapter)
    # A version without this option started the run.
    is_started = read_frozen_section(run.config, "train") is not None
    return run.untrained_tokens if lora.train_untrained_tokens and not is_started else ()


def record_trained_tokens(run: OpenRun, token_ids: tuple[int, ...]) -> None:
    """Fix the rows that a LoRA run trains; called before its config is frozen."""
    if run.config.model.lora is not None:
        atomic_write_json(run.folder.path / TRAINED_TOKENS_FILE, {"token_ids": token_ids})
