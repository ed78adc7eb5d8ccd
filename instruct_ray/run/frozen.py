"""The config of a run, frozen by the first stage that uses a section and compared by every later stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from instruct_ray.config.evidence import BenchmarksConfig
from instruct_ray.config.gate import GateConfig
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder

FROZEN_FILE = "config.json"
# Keys that may change when a run is resumed: how the run is executed, and the paths of its sources. Sources are
# identified by their content.
RESUME_SAFE_KEYS = frozenset(
    {
        "data.sources",
        "train.num_workers",
        "train.cpus_per_worker",
        "train.use_gpu",
        "train.label_selector",
        "train.packed",
        "train.offload.optimizer",
        "train.offload.parameters",
        "train.wait_for_nodes",
        "train.max_failures",
        "train.checkpoint_every",
        "train.num_checkpoints",
        "train.max_nonfinite_steps",
        "train.validation.max_wait_seconds",
        "train.validation.num_cpus",
        "train.validation.num_gpus",
        "train.validation.label_selector",
        "train.loss_spike",
        "train.loss_spike.factor",
        "train.loss_spike.num_steps",
        "train.loss_spike.window",
        # How the test rows are answered, and how often latency is measured; the answers stay the same.
        "evidence.num_engines",
        "evidence.num_latency_rows",
        # benchmarks.json records the benchmarks that it has.
        *(f"evidence.benchmarks.{name}" for name in BenchmarksConfig.model_fields),
        # Each decision records the rules that it was made by.
        "registry.gate",
        *(f"registry.gate.{name}" for name in GateConfig.model_fields),
    }
)


def check_config_unchanged(config: Config, *sections: str) -> None:
    """Check that config sections equal the ones that an earlier stage of the run froze.

    A key that did not exist when the section was frozen counts as frozen at its default.

    Raises:
        InputError: a key differs. The message names the keys and both values.
    """
    frozen, current = _read_frozen(config), _dump_sections(config, sections)
    changed = [
        f"{key} was {_lookup(frozen, key)!r}, now {_lookup(current, key)!r}"
        for section in sorted(current.keys() & frozen.keys())
        for key in _differing_keys(section, frozen[section], current[section])
        if not _is_resume_safe(key)
    ]
    if changed:
        raise InputError(
            f"run {config.run.name} in {config.run.storage} was started with a different config "
            f"({'; '.join(changed)}); use the old values or another run.name"
        )


def freeze_config(config: Config, *sections: str) -> None:
    """Save these config sections as those of the run. A stage calls it once its input is known to be valid.

    Raises:
        InputError: a key differs from an earlier stage, as in `check_config_unchanged`.
    """
    check_config_unchanged(config, *sections)
    atomic_write_json(_frozen_file(config), _read_frozen(config) | _dump_sections(config, sections))


def read_frozen_section(config: Config, section: str) -> dict[str, Any] | None:
    """A frozen section, with keys that are newer than it at their defaults; None if no stage froze it."""
    return _read_frozen(config).get(section)


def read_registry_uri(folder: Path) -> str | None:
    """The `registry.uri` that a run was registered with; None if it was not registered, or had none."""
    path = folder / FROZEN_FILE
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    uri: str | None = values.get("registry", {}).get("uri")
    return uri


def _frozen_file(config: Config) -> Path:
    return RunFolder.from_config(config).path / FROZEN_FILE


def _read_frozen(config: Config) -> dict[str, Any]:
    path = _frozen_file(config)
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in values:
        section = dict(config).get(name)
        if isinstance(section, BaseModel):
            values[name] = _fill_defaults(type(section), values[name], section)
    # A run folder may be moved to another storage.
    values.get("run", {}).pop("storage", None)
    return values


def _fill_defaults(schema: type[BaseModel], values: dict[str, Any], current: BaseModel) -> dict[str, Any]:
    """The values with each missing key at its default, in nested sections too.

    The schema of a nested section is taken from `current`. A section that is None there needs no schema, since it
    differs as a whole.
    """
    filled = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in schema.model_fields.items()
        if not field.is_required()
    } | values
    for name, value in filled.items():
        nested = vars(current).get(name)
        if isinstance(value, dict) and isinstance(nested, BaseModel):
            filled[name] = _fill_defaults(type(nested), value, nested)
    return filled


def _dump_sections(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    values = config.model_dump(mode="json", include=set(names))
    values.get("run", {}).pop("storage", None)
    return values


def _differing_keys(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differing_keys(f"{key}.{name}", old.get(name), new.get(name))
    elif old != new:
        yield key


def _is_resume_safe(key: str) -> bool:
    # Below a label selector are no options but labels.
    selector, _, label = key.partition(".label_selector.")
    return (f"{selector}.label_selector" if label else key) in RESUME_SAFE_KEYS


def _lookup(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
