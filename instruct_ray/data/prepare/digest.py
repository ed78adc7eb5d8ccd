"""The digest that names a run's packs: a hash of everything that decides their content. Pure."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.contract import PromptContract

# Incremented when the same rows would be packed differently. Rows that can be read now and could not before do not
# count: see `READING_VERSION`.
PACKING_VERSION = 2
# These options are part of the digest at any value. Options added later are part of it only if they are not at their
# default, so that packs of earlier versions keep their digest.
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
    """sha256 over the sources' content, their options, the contract, the `data` options and the seed."""
    data_options = _select_options(config.data, DATA_OPTIONS, exclude={"sources"})
    # Not the path: a source may be moved.
    source_options = [_select_options(source, SOURCE_OPTIONS, exclude={"path"}) for source in config.data.sources]
    content = [
        PACKING_VERSION, list(source_digests), source_options, contract.digest, data_options, config.run.seed,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _select_options(section: BaseModel, always_included: frozenset[str], exclude: set[str]) -> dict[str, Any]:
    """The options of a section that are part of the digest."""
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in type(section).model_fields.items()
        if not field.is_required()
    }
    values = section.model_dump(mode="json", exclude=exclude)
    return {
        name: value for name, value in values.items() if name in always_included or value != defaults.get(name, ...)
    }
