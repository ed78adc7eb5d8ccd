"""Run the cases of the fault drill on the tiny model, and print what each fault cost.

python -m tests.drill [CASE ...] [--soak-minutes N] [--json FILE]     (all cases: an hour and a half on two cores)
"""

import os

# Before Ray is imported, so that it writes no token into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import argparse
import dataclasses
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from instruct_ray.cli import ray_session
from tests.drill.cases import CASES, DrillCase
from tests.drill.harness import CaseResult, DrillHarness


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print a table; returns 1 if a case failed."""
    options = parse_arguments(arguments)
    ray_session.silence_libraries()
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    reports, harness = [], DrillHarness(folder, options.soak_minutes)
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    try:
        for report in run_cases(cases, harness):
            reports.append(report)
            print(f"{report['case']}: {report['verdict']} ({report['seconds']:.0f} s)", flush=True)
            if report["error"]:
                print(report["error"], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(reports)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=2))
    return int(any(report["verdict"] == "FAILED" for report in reports))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--soak-minutes", type=float, default=30.0, help="how long the soak lasts (default: 30)")
    parser.add_argument("--json", type=Path, help="file to which the reports are written too")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(names):
        parser.error(f"no case {', '.join(sorted(unknown))}")
    return options


def run_cases(cases: Sequence[DrillCase], harness: DrillHarness) -> Iterator[dict[str, Any]]:
    """Run the cases; those that share the local cluster come first."""
    with ExitStack() as stack:
        stack.enter_context(harness.local_cluster())
        for case in cases:
            if case.cluster == "shared":
                yield run_case(case, harness)
    for case in cases:
        if case.cluster == "own":
            yield run_case(case, harness)


def run_case(case: DrillCase, harness: DrillHarness) -> dict[str, Any]:
    """Run a case; returns its report."""
    started = time.monotonic()
    error, result = "", CaseResult()
    try:
        result = case.run(harness)
        assert result.is_bitwise_equal is not False, "the weights or losses differ from those of the uninterrupted run"
    except Exception:  # the other cases run even if one fails
        error = traceback.format_exc()
        for point in harness.armed_faults:
            harness.disarm_fault(point)
    seconds = time.monotonic() - started
    verdict = "FAILED" if error else "LATE" if seconds > case.max_seconds else "passed"
    if result.skipped:
        verdict, result.note = "skipped", result.skipped
    values = dataclasses.asdict(result) | {"num_redone": result.num_redone if result.num_planned else None}
    return {"case": case.name, "fault": case.fault, "verdict": verdict, "seconds": seconds, "error": error, **values}


def print_table(reports: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "fault", "verdict", "steps redone", "next step after", "same bits", "goodput", ""):
        table.add_column(name)
    for report in reports:
        seconds = ", ".join(f"{value:.1f}" for value in report["seconds_to_next_step"])
        table.add_row(
            report["case"],
            report["fault"],
            report["verdict"],
            "" if report["num_redone"] is None else str(report["num_redone"]),
            f"{seconds} s" if seconds else "",
            {True: "yes", False: "no", None: ""}[report["is_bitwise_equal"]],
            "" if report["goodput"] is None else f"{100 * report['goodput']:.0f} %",
            report["note"],
        )
    Console(width=200, soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
