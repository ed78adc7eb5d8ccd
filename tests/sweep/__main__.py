"""Writes the table of README.md from the results of a sweep: python -m tests.sweep FOLDER."""

import sys
from pathlib import Path

from tests.sweep.table import read_results, write_readme

if __name__ == "__main__":
    write_readme(read_results(Path(sys.argv[1])))
