"""driver: shows the evidence of a run: writes report.html, and uploads report, evidence and answers to MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.evidence.benchmarks.file import benchmarks_file
from instruct_ray.evidence.report.report import write_report
from instruct_ray.evidence.results.files import ANSWERS_FILE
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.evidence_upload import upload_evidence


def publish_evidence(config: Config, warn: Callable[[str], None]) -> Path:
    """Write the report of an evaluated run and upload it; returns its path.

    A server that does not respond is a warning: the files stay in the run's folder, and calling this again uploads
    them.

    Raises:
        InputError: the evidence is missing or of an earlier version.
    """
    folder = RunFolder.from_config(config)
    report = write_report(folder)
    answers_file = folder.evidence_file.with_name(ANSWERS_FILE)
    try:
        files = [path for path in (folder.evidence_file, report, benchmarks_file(folder)) if path.is_file()]
        upload_evidence(config, files, _read_table(answers_file))
    except (UnavailableError, InputError) as error:
        warn(f"the evidence is not in MLflow yet ({error}); run `instruct-ray evaluate` again to upload it")
    return report


def _read_table(answers_file: Path) -> dict[str, list[Any]]:
    """The answers by column: one column for each arm, with texts or errors."""
    columns: dict[str, list[Any]] = {}
    with answers_file.open(newline="\n") as file:
        for line in file:
            row = json.loads(line)
            answers = {f"answer.{name}": one.get("text", one.get("error")) for name, one in row.pop("answers").items()}
            for name, value in (row | answers).items():
                columns.setdefault(name, []).append(value)
    return columns
