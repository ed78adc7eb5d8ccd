"""The digest that names a run's packs: everything that decides their content, and nothing else. Pure."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.run.frozen import read_frozen_section

# Raised when the same rows would be packed otherwise.
PACKING_VERSION = 2
# These count at any value. An option that was added later counts only where it is not at its default, so that the
# packs of earlier versions keep their digest.
DATA_OPTIONS = frozenset(
    {
        "test_fraction",
        "validation_fraction",
        "system_prompt",
        "max_tokens",
        "too_long",
        "pack_tokens",
        "max_bad_fraction",
        "max_row_bytes",
        "near_duplicates",
    }
)
SOURCE_OPTIONS = frozenset({"format", "columns", "weight", "split", "subset"})


def packs_digest(config: Config, contract: PromptContract, source_digests: Sequence[str]) -> str:
    """sha256 over the sources' content and how it is read, the contract, the `data` options and the seed."""
    options = _counted(config.data, DATA_OPTIONS, exclude={"sources"})
    # Where a source is does not matter.
    readings = [_counted(source, SOURCE_OPTIONS, exclude={"path"}) for source in config.data.sources]
    content = [PACKING_VERSION, list(source_digests), readings, contract.digest, options, config.run.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_changed_reading(config: Config) -> str:
    """Which option of `data.sources` differs from the one that the run was prepared with."""
    frozen = (read_frozen_section(config, "data") or {}).get("sources", [])
    for index, (source, before) in enumerate(zip(config.data.sources, frozen, strict=False)):
        for name, value in source.model_dump(mode="json", exclude={"path"}).items():
            if before.get(name, value) != value:
                return f"data.sources: source {index + 1}: {name} was {before[name]!r}, now {value!r}"
    return "data.sources: the packs were prepared by another version of instruct_ray"


def _counted(section: BaseModel, always: frozenset[str], exclude: set[str]) -> dict[str, Any]:
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in type(section).model_fields.items()
        if not field.is_required()
    }
    values = section.model_dump(mode="json", exclude=exclude)
    return {name: value for name, value in values.items() if name in always or value != defaults.get(name, ...)}
