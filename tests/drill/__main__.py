"""Break runs of the tiny model in every way of the fault matrix, and print what it cost.

python -m tests.drill [ROW ...] [--json FILE]        (all rows: half an hour on two cores)
"""

import os

# Before Ray is imported: no token is written to the home folder.
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
from tests.drill.lab import Figures, Lab
from tests.drill.rows import ROWS, Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(row.name for row in ROWS)}; all")
    parser.add_argument("--json", type=Path, help="where the figures go as well")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.rows) - {row.name for row in ROWS}:
        parser.error(f"no row {', '.join(sorted(unknown))}")
    ray_session.silence_libraries()
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    found = []
    try:
        for result in drilled([row for row in ROWS if not chosen.rows or row.name in chosen.rows], folder):
            found.append(result)
            print(f"{result['row']}: {result['verdict']} ({result['seconds']:.0f} s)", flush=True)
            if result["error"]:
                print(result["error"], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))
    return int(any(result["verdict"] == "FAILED" for result in found))


def drilled(rows: Sequence[Row], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows that share the local cluster first: their uninterrupted run is made once."""
    lab = Lab(folder)
    with ExitStack() as stack:
        stack.enter_context(lab.ray())
        for row in rows:
            if row.place == "local":
                yield drill(row, lab)
    for row in rows:
        if row.place == "own":
            yield drill(row, lab)


def drill(row: Row, lab: Lab) -> dict[str, Any]:
    """One row, and what came of it."""
    began = time.monotonic()
    error, figures = "", Figures()
    try:
        figures = row.drill(lab)
        assert figures.is_bitwise is not False, "the weights or losses differ from those of the uninterrupted run"
    except Exception:  # one row that fails does not hide the others
        error = traceback.format_exc()
        for point in lab.armed:
            lab.disarm(point)
    seconds = time.monotonic() - began
    verdict = "FAILED" if error else "LATE" if seconds > row.seconds else "passed"
    values = dataclasses.asdict(figures) | {"wasted": figures.wasted if figures.planned else None}
    return {"row": row.name, "fault": row.fault, "verdict": verdict, "seconds": seconds, "error": error, **values}


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "fault", "verdict", "wasted steps", "next step after", "same bits", "goodput", ""):
        table.add_column(name)
    for each in found:
        seconds = ", ".join(f"{value:.1f}" for value in each["seconds_to_next_step"])
        bits = {True: "yes", False: "no", None: ""}[each["is_bitwise"]]
        goodput = "" if each["goodput"] is None else f"{100 * each['goodput']:.0f} %"
        wasted = "" if each["wasted"] is None else str(each["wasted"])
        cells = (each["row"], each["fault"], each["verdict"], wasted, f"{seconds} s" if seconds else "", bits, goodput)
        table.add_row(*cells, each["says"])
    Console(width=200, soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
