"""The results of the sweep as the table of README.md."""

import json
from dataclasses import dataclass
from pathlib import Path

START, END = "<!-- sweep -->", "<!-- /sweep -->"
README = Path(__file__).parent / "README.md"


@dataclass(frozen=True)
class Result:
    """How an architecture fared."""

    name: str
    outcomes: dict[str, str]
    """By method of tuning: "packed", "padded", or "refused: " and why."""
    seconds: int


def read_results(folder: Path) -> dict[str, Result]:
    """Read the results of all architectures, by name."""
    results = [Result(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
    return {result.name: result for result in results}


def format_table(results: dict[str, Result]) -> str:
    """One row per architecture, in Markdown."""
    methods = list(next(iter(results.values())).outcomes)
    lines = [f"| architecture | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for result in results.values():
        outcomes = [result.outcomes[method] for method in methods]
        if len(set(outcomes)) == 1 and outcomes[0].startswith("refused"):
            outcomes = [outcomes[0], *[""] * (len(methods) - 1)]
        lines.append(f"| `{result.name}` | {' | '.join(outcomes)} |")
    return "\n".join(lines)


def write_readme(results: dict[str, Result]) -> None:
    """Replace the table in this folder's README.md."""
    text = README.read_text()
    before, after = text.partition(START)[0], text.partition(END)[2]
    README.write_text(f"{before}{START}\n{format_table(results)}\n{END}{after}")
