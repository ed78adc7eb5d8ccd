"""How far the runs of a storage are, from the ends and heads of their files: no cost grows with rows or steps."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, TypeAdapter

from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.run.lock_file import EXPIRY_SECONDS, LOCK_FILE, describe_owner, read_lock

# Of the metrics file: enough lines to know the speed.
TAIL_BYTES = 32 * 1024
NUM_STEPS = 20
# What a run is doing once it has finished a stage, if a process works on it.
NEXT_STAGE = {"new": "preparing", "prepared": "tuning", "tuned": "evaluating", "evaluated": "registering"}


class RunSummary(BaseModel):
    """One run, in one line."""

    name: str
    storage: str
    finished: str
    """The last finished stage: new, prepared, tuned, evaluated or registered."""
    owner: str | None = None
    """The process that works on the run; None if none does."""
    step: int | None = None
    """Steps that are trained; None before the first one."""
    num_steps: int | None = None
    """Steps in all."""
    seconds_left: float | None = None
    """Of the training; None while it does not run."""
    verdict: str | None = None
    """Of the evidence."""
    version: str | None = None
    """NAME/NUMBER in the registry."""
    aliases: list[str] = []
    """Of the version. The files of a run don't say, the registry does."""
    endpoint: str | None = None
    """The URL of an endpoint that serves the version. Endpoints say, not the files of a run."""
    changed_at: float = 0.0
    """When the run last changed, in seconds since 1970."""

    @property
    def stage(self) -> str:
        """What the run is doing, or how far it is."""
        return self.finished if self.owner is None else NEXT_STAGE.get(self.finished, self.finished)


RUNS = TypeAdapter(list[RunSummary])


def list_runs(storage: Path) -> list[RunSummary]:
    """The runs of a storage, the one that changed last first."""
    folders = [path for path in storage.iterdir() if path.is_dir() and not path.name.startswith(".")]
    runs = [summary for path in folders if (summary := _summarize(path)) is not None]
    return sorted(runs, key=lambda run: -run.changed_at)


def _summarize(path: Path) -> RunSummary | None:
    """The summary of a run; None of a folder that is none."""
    folder = RunFolder(path)
    marks = {
        "registered": folder.version_file,
        "evaluated": folder.evidence_file,
        "tuned": folder.model_dir / MODEL_METADATA_FILE,
        "prepared": next(folder.packs_dir.glob("*/manifest.json"), folder.packs_dir),
    }
    owner = _find_owner(path)
    finished = next((stage for stage, mark in marks.items() if mark.is_file()), "new")
    if finished == "new" and owner is None:
        return None
    version = _read_json(folder.version_file)
    evidence = _read_json(folder.evidence_file)
    steps = _read_last_steps(folder.metrics_file)
    summary = RunSummary(
        name=path.name,
        storage=str(path.parent),
        finished=finished,
        owner=owner,
        verdict=evidence.get("verdict", {}).get("outcome"),
        version=f"{version['name']}/{version['version']}" if version else None,
        changed_at=max(_modified_at(mark) for mark in (*marks.values(), folder.metrics_file)),
    )
    return summary.model_copy(update=_progress(steps, is_training=summary.stage == "tuning")) if steps else summary


def _progress(steps: list[dict[str, Any]], *, is_training: bool) -> dict[str, float | int | None]:
    step, num_steps = steps[-1]["step"], steps[-1].get("num_steps")
    seconds = [one["seconds"] for one in steps[-NUM_STEPS:] if "seconds" in one]
    has_rate = is_training and num_steps is not None and seconds
    return {
        "step": step,
        "num_steps": num_steps,
        "seconds_left": (num_steps - step) * fmean(seconds) if has_rate else None,
    }


def _find_owner(path: Path) -> str | None:
    """The process that holds the run's lock and has renewed it; None if there is none."""
    state = read_lock(path / LOCK_FILE)
    if state is None or time.time() - state.modified_at > EXPIRY_SECONDS:
        return None
    return describe_owner(state)


def _read_last_steps(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a metrics file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read()
    except OSError:
        return []
    # The first line may begin before, and the last may still be written.
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return list(_parse_lines(lines))


def _parse_lines(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file; empty if there is none."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
