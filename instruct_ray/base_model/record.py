"""The base model that a run started from: recorded once, checked whenever the run resumes."""

import json

from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder

# In a run's folder: the base model, and the version that an alias pointed to.
BASE_RECORD = "base.json"


def record_base(config: Config, base_model: BaseModelInfo) -> None:
    """Record the base model of a run.

    The content of a folder may change later, and an alias moves, at the latest when this run is registered.
    """
    record = {
        "reference": config.model.base,
        "name": base_model.name,
        "folder": base_model.initial_model_dir.name,
        "digest": base_model.digest,
    }
    atomic_write_json(RunFolder.from_config(config).path / BASE_RECORD, record)


def check_base_unchanged(config: Config, base_model: BaseModelInfo) -> None:
    """Check that a base model is the one that the run started from.

    Raises:
        InputError: its digest differs; names both.
    """
    record = read_base_record(config)
    if record is not None and record["digest"] != base_model.digest:
        raise InputError(
            f"model.base: run {config.run.name} started from {record['name']} ({record['digest'][:12]}), but "
            f"{base_model.initial_model_dir} now holds {base_model.digest[:12]}; restore that model or use another "
            "run.name"
        )


def read_base_record(config: Config) -> dict[str, str] | None:
    """Read the recorded base model of a run; None if nothing is recorded yet."""
    path = RunFolder.from_config(config).path / BASE_RECORD
    if not path.is_file():
        return None
    record: dict[str, str] = json.loads(path.read_text())
    return record
