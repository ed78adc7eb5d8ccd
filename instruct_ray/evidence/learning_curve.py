"""driver: what more training rows would bring: answers of models that were tuned on parts of a run's rows.

Each part is a run of its own in the folder of the run, with the same held-out rows. All of it can be repeated: what is
there is not trained, and not asked, again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.source_changes import check_sources_unchanged
from instruct_ray.errors import InputError
from instruct_ray.evidence.answers import Answer, load_outcome
from instruct_ray.evidence.arms import TUNED
from instruct_ray.evidence.asking.journal import JOURNAL_FILE, Journal
from instruct_ray.evidence.asking.local import LocalAsker
from instruct_ray.evidence.metrics import is_exact
from instruct_ray.evidence.plan import make_plan
from instruct_ray.evidence.report.learning_curve import LEARNING_CURVE_FILE
from instruct_ray.evidence.results.files import ANSWERS_FILE
from instruct_ray.evidence.statistics.accuracy import accuracy_interval
from instruct_ray.evidence.statistics.learning_curve import LearningCurve, fit_learning_curve
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.run.lock import run_lock
from instruct_ray.tracking.mlflow_client import tracking_uri

# In the folder of the run: the runs of its parts.
PARTS_DIR = "learning_curve"


@dataclass(frozen=True)
class CurvePoint:
    """A model that was tuned on a fraction of the rows, and whether it answers each held-out row rightly."""

    fraction: float
    num_train_rows: int
    correct: Mapping[str, bool]
    """By row id; rows whose request failed are left out."""


def make_part(config: Config, fraction: float) -> Config:
    """The config of a run on a fraction of the training rows, which is evaluated with the tuned model alone.

    Raises:
        InputError: the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--fraction {fraction:g}: give fractions of the training rows between 0 and 1, such as 0.5")
    folder = RunFolder.from_config(config).path
    updates: dict[str, dict[str, Any]] = {
        "run": {"name": f"{config.run.name}-{100 * fraction:g}-percent", "storage": folder / PARTS_DIR},
        "data": {"train_fraction": fraction * config.data.train_fraction},
        "evidence": {"num_few_shot": 0, "documents": (), "arms": (), "compare_champion": False, "num_latency_rows": 1},
        # In the experiment of the run.
        "registry": {"uri": tracking_uri(config)},
    }
    sections = {name: vars(config)[name].model_copy(update=update) for name, update in updates.items()}
    return config.model_copy(update=sections)


def check_sizes(config: Config, parts: Iterable[Config]) -> None:
    """Check that the parts of a run, prepared, differ in their number of training rows, before any is tuned.

    Raises:
        InputError: two have the same number, or one as many as the run.
    """
    numbers = sorted(open_run(one, "evaluate").packs.num_examples for one in (*parts, config))
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--fraction: the parts have {numbers} training rows; give fractions that differ by more")


def answer_part(
    config: Config, fraction: float, test_digest: str, status: Callable[[str], None], start_ray: Callable[[], None]
) -> CurvePoint:
    """Answer the held-out rows with the tuned model of a part.

    Args:
        config: the config of the part, whose model is tuned.
        fraction: of the training rows.
        test_digest: of the held-out rows that the whole run answered.
        status: called with progress messages.
        start_ray: called if answers are missing.

    Raises:
        InputError: the part has other held-out rows.
    """
    run = open_run(config, "evaluate")
    evidence_dir = run.folder.evidence_file.parent
    with run_lock(run.folder.path), Journal(evidence_dir / JOURNAL_FILE) as journal:
        plan = make_plan(run, status)
        asker = LocalAsker([arm for arm in plan.arms if arm.name == TUNED], config, journal, status)
        if not asker.is_finished:
            start_ray()
            asker.ask({})
        [tuned] = asker.collect()
    if plan.rows.digest != test_digest:
        raise InputError(
            f"{run.folder.test_rows_file}: other held-out rows than those of the run's evidence, since the data has "
            "changed; start over under another run.name"
        )
    correct = {
        row.id: is_exact(outcome.text, row.output)
        for row, outcome in zip(plan.rows.triples, tuned.outcomes, strict=True)
        if isinstance(outcome, Answer)
    }
    return CurvePoint(fraction, run.packs.num_examples, correct)


def load_whole(config: Config) -> tuple[CurvePoint, dict[str, str]]:
    """The point of the run itself, and the group of each held-out row by its id.

    Raises:
        InputError: the run is not evaluated yet, or its sources have changed.
    """
    path = RunFolder.from_config(config).evidence_file.with_name(ANSWERS_FILE)
    if not path.is_file():
        raise InputError(f"{path}: no answers; run `instruct-ray evaluate` with this config first")
    groups, correct = {}, {}
    with path.open(newline="\n") as file:
        for line in file:
            values = json.loads(line)
            if "group" not in values:
                raise InputError(f"{path}: written by an earlier version; evaluate again under another run.name")
            outcome = load_outcome(values["answers"][TUNED])
            groups[values["id"]] = values["group"]
            if isinstance(outcome, Answer):
                correct[values["id"]] = is_exact(outcome.text, values["expected"])
    run = open_run(config, "evaluate")
    check_sources_unchanged(run)
    return CurvePoint(1.0, run.packs.num_examples, correct), groups


def write_learning_curve(config: Config, parts: Sequence[CurvePoint]) -> dict[str, Any]:
    """Fit the curve to the parts and the whole, and write `learning_curve.json`; returns its content.

    Raises:
        InputError: the run is not evaluated yet.
    """
    whole, groups = load_whole(config)
    points = sorted([*parts, whole], key=lambda point: point.num_train_rows)
    numbers = [point.num_train_rows for point in points]
    # Rows that every model answered.
    ids = [row_id for row_id in groups if all(row_id in point.correct for point in points)]
    correct = [[point.correct[row_id] for row_id in ids] for point in points]
    row_groups = [groups[row_id] for row_id in ids]
    fitted = fit_learning_curve(numbers, correct, row_groups)
    values = {
        "points": [_point_figures(point, right, row_groups) for point, right in zip(points, correct, strict=True)],
        **_describe_fit(fitted, numbers),
    }
    atomic_write_json(curve_file(config), values)
    return values


def curve_file(config: Config) -> Path:
    """Where the learning curve of a run is written."""
    return RunFolder.from_config(config).evidence_file.with_name(LEARNING_CURVE_FILE)


def _point_figures(point: CurvePoint, correct: Sequence[bool], groups: Sequence[str]) -> dict[str, Any]:
    accuracy = accuracy_interval(correct, groups)
    return {
        "fraction": point.fraction,
        "num_rows": point.num_train_rows,
        "accuracy": accuracy.estimate,
        "lower": accuracy.lower,
        "upper": accuracy.upper,
    }


def _describe_fit(fitted: LearningCurve | str, num_train_rows: Sequence[int]) -> dict[str, Any]:
    """The fit and what twice as many rows should bring; `doubling` is null if that can't be said."""
    if isinstance(fitted, str):
        return {"fit": f"No fit: {fitted}.", "doubling": None}
    gain, interval = 100 * fitted.doubling_gain, f"{100 * fitted.lower:+.1f} to {100 * fitted.upper:+.1f}"
    sentence = (
        f"Twice as many training rows should change the accuracy by {gain:+.1f} points (interval {interval}), if the "
        f"error rate goes on as it did from {num_train_rows[0]:,} to {num_train_rows[-1]:,} rows. The interval speaks "
        "of the held-out rows, not of other training seeds."
    )
    return {
        "fit": f"error rate = {fitted.factor:.3g} × rows ^ {fitted.exponent:.3f}",
        "doubling": {
            "gain": fitted.doubling_gain, "lower": fitted.lower, "upper": fitted.upper, "sentence": sentence,
        },
    }  # fmt: skip
