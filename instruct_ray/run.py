"""RunConfig -> the folder of a run: where each arrow finds its input and leaves its output."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config import Config
from instruct_ray.errors import InputError

# These may change when a run continues: how it is carried out, and where its sources lie, since those are known by
# their content.
OPERATIONAL_KEYS = frozenset(
    {
        "data.sources",
        "train.num_workers",
        "train.cpus_per_worker",
        "train.use_gpu",
        "train.offload.optimizer",
        "train.offload.parameters",
        "train.wait_for_nodes",
        "train.max_failures",
        "train.checkpoint_every",
        "train.num_checkpoints",
        "train.max_nonfinite_steps",
        "train.validation.num_cpus",
        "train.validation.num_gpus",
        "train.loss_spike",
        "train.loss_spike.factor",
        "train.loss_spike.num_steps",
        "train.loss_spike.window",
    }
)


# In a model folder: what it was made from.
MODEL_RECORD = "instruct_ray.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths under `{run.storage}/{run.name}`."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        return cls(config.run.storage / config.run.name)

    @property
    def packs(self) -> Path:
        """Prepared packs, one folder per digest of what they were made from."""
        return self.path / "packs"

    @property
    def test(self) -> Path:
        """The frozen held-out rows."""
        return self.path / "test.jsonl"

    @property
    def validation(self) -> Path:
        """The rows held out to compare checkpoints."""
        return self.path / "validation.jsonl"

    @property
    def train(self) -> Path:
        """Ray Train's folder: checkpoints and its own state."""
        return self.path / "train"

    @property
    def metrics(self) -> Path:
        """One JSON line per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        """What validation said of each checkpoint, and the best model."""
        return self.path / "validation"

    @property
    def scored(self) -> Path:
        """One JSON line per validated checkpoint."""
        return self.scores / "scores.jsonl"

    @property
    def model(self) -> Path:
        """The tuned model or adapter as a Hugging Face folder."""
        return self.path / "model"

    @property
    def contract(self) -> Path:
        """How chats become tokens; equal from prepare to serve."""
        return self.path / "contract.json"

    @property
    def evidence(self) -> Path:
        """The comparison of the tuned model with its base."""
        return self.path / "evidence" / "evidence.json"

    @property
    def version(self) -> Path:
        """Which registry version this run became."""
        return self.path / "version.json"


def check_pinned(config: Config, *sections: str) -> None:
    """Refuse config sections that differ from what an earlier arrow of the run pinned.

    Raises:
        InputError: names the keys with both values.
    """
    pinned, current = _pinned(config), _current(config, sections)
    changed = [
        f"{key} was {_leaf(pinned, key)!r}, now {_leaf(current, key)!r}"
        for section in sorted(current.keys() & pinned.keys())
        for key in _differences(section, pinned[section], current[section])
        if key not in OPERATIONAL_KEYS
    ]
    if changed:
        raise InputError(
            f"run {config.run.name} in {config.run.storage} was made with another config ({'; '.join(changed)}); "
            "take another run.name or the old values"
        )


def pin(config: Config, *sections: str) -> None:
    """Tie a run to these config sections, once something is made of them.

    Raises:
        InputError: as `check_pinned`.
    """
    check_pinned(config, *sections)
    write_json(_record(config), _pinned(config) | _current(config, sections))


def _record(config: Config) -> Path:
    return RunFolder.of(config).path / "config.json"


def _pinned(config: Config) -> dict[str, Any]:
    record = _record(config)
    values: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    return values


def _current(config: Config, sections: tuple[str, ...]) -> dict[str, Any]:
    values = config.model_dump(mode="json", include=set(sections))
    # A run that is moved as a whole is the same run.
    values.get("run", {}).pop("storage", None)
    return values


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(f"{key}.{name}", old.get(name), new.get(name))
    elif old != new:
        yield key


def _leaf(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the complete new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old one or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes when it does not."""
    temporary = _temporary(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in new_parents:
                # Only an empty one goes: nothing was made in it.
                parent.rmdir()


def _temporary(path: Path) -> Path:
    """A name of its own beside `path`: process ids repeat across the machines that share the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
