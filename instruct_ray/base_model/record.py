"""Which base a run began with: recorded once, compared whenever the run continues."""

import json

from instruct_ray.base_model.resolve import BaseModelInfo
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder

# In a run's folder: what it starts from, and which version an alias meant then.
BASE_RECORD = "base.json"


def record_base(config: Config, base: BaseModelInfo) -> None:
    """Tie a run to what it starts from: a folder's content may change, and an alias moves, at the latest when the run
    itself is registered."""
    record = {
        "reference": config.model.base,
        "name": base.name,
        "folder": base.initial_model_dir.name,
        "digest": base.digest,
    }
    atomic_write_json(RunFolder.from_config(config).path / BASE_RECORD, record)


def check_base_unchanged(config: Config, base: BaseModelInfo) -> None:
    """Refuse a base that is not what the run began with.

    Raises:
        InputError: names both.
    """
    known = read_base_record(config)
    if known and known["digest"] != base.digest:
        raise InputError(
            f"model.base: run {config.run.name} began with {known['name']} ({known['digest'][:12]}), {base.initial_model_dir} now "
            f"holds {base.digest[:12]}; bring that back or take another run.name"
        )


def read_base_record(config: Config) -> dict[str, str]:
    record = RunFolder.from_config(config).path / BASE_RECORD
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    return known
