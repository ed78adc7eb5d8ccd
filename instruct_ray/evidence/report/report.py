"""driver: evidence of a run -> `report.html`, one page that needs no network.

The page is made of the files of the run alone: the same files, and the same versions of the packages, make the same
bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from instruct_ray.data.report.token_view import escape_invisible
from instruct_ray.evidence.benchmarks.file import benchmarks_file, load_benchmarks
from instruct_ray.evidence.report import formatting
from instruct_ray.evidence.report.answers import ANSWERS_FILE, MAX_SUSPICIOUS, read_answers
from instruct_ray.evidence.report.charts import arms as arm_charts
from instruct_ray.evidence.report.charts.curves import learning_chart, loss_chart
from instruct_ray.evidence.report.confusion import build_confusion
from instruct_ray.evidence.report.data_facts import read_data_facts
from instruct_ray.evidence.report.evidence_file import EvidenceFile, read_evidence_file
from instruct_ray.evidence.report.learning_curve import LEARNING_CURVE_FILE, read_learning_curve
from instruct_ray.evidence.report.losses import read_training_losses, read_validation
from instruct_ray.evidence.report.reproduce import build_reproduction, read_model_metadata
from instruct_ray.evidence.report.tables import group_slices, measure_name, measure_tables, own_comparisons, summarize
from instruct_ray.files import atomic_write_text
from instruct_ray.run.folder import RunFolder

TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: RunFolder, config_file: Path | None = None) -> Path:
    """Write the report of a run's evidence; returns its path.

    Args:
        folder: the run, evaluated.
        config_file: the config file that the commands to reproduce it name.

    Raises:
        InputError: the evidence is missing or of an earlier version, or a file of the run can't be used.
    """
    atomic_write_text(folder.report_file, render_report(build_report(folder, config_file)))
    return folder.report_file


def build_report(folder: RunFolder, config_file: Path | None) -> dict[str, Any]:
    """Collect the content of the page; its size is bounded, whatever the number of rows."""
    evidence = read_evidence_file(folder.evidence_file)
    metadata = read_model_metadata(folder)
    tuned_arm, best_arm = evidence.verdict.tuned_arm, evidence.verdict.best_arm
    suspicious_ids = [row.id for row in evidence.suspicious_rows]
    training, validation = read_training_losses(folder.metrics_file), read_validation(folder.validation_scores_file)
    curve = read_learning_curve(folder.evidence_file.with_name(LEARNING_CURVE_FILE))
    return {
        "evidence": evidence,
        "tuned": tuned_arm,
        "summary": summarize(evidence),
        "comparisons": own_comparisons(evidence),
        "measure_tables": measure_tables(evidence),
        "slices": group_slices(evidence),
        "answers": read_answers(folder.evidence_file.with_name(ANSWERS_FILE), tuned_arm, best_arm, suspicious_ids),
        "training": training,
        "validation": validation,
        "learning": curve,
        "skill": load_benchmarks(benchmarks_file(folder)),
        "exported_step": metadata.get("step"),
        "confusion": build_confusion(evidence.arms, tuned_arm, best_arm),
        "data": read_data_facts(folder, metadata.get("packs_digest")),
        "reproduction": build_reproduction(folder, config_file, evidence, metadata),
        "charts": _draw_charts(evidence)
        | {
            "losses": loss_chart(training, validation, metadata.get("step")),
            "learning": None if curve is None else learning_chart(curve),
        },
    }


def render_report(values: Mapping[str, Any]) -> str:
    """Render the page; everything that comes from users is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # No text changes the writing direction of the page, or can't be written as UTF-8.
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "points", "number", "seconds", "p_value", "interval", "shown_text"):
        environment.filters[name] = vars(formatting)[name]
    environment.filters["measure_name"] = measure_name
    return environment.get_template("page.html.jinja").render(values, max_suspicious=MAX_SUSPICIOUS)


def _draw_charts(evidence: EvidenceFile) -> dict[str, Any]:
    return {
        "accuracy": arm_charts.accuracy_chart(evidence.arms),
        "differences": arm_charts.difference_chart(
            own_comparisons(evidence), evidence.arms, evidence.verdict.tuned_arm, evidence.verdict.margin
        ),
        "tradeoff": arm_charts.tradeoff_chart(evidence.arms),
        "latency": arm_charts.latency_chart(evidence.arms),
        "slices": arm_charts.slice_chart(evidence.slices),
    }
