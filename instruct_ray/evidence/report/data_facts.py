"""driver: facts about the data of a run, from the summaries that `prepare` wrote; no row is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.data.packs.dataset import MANIFEST, finished_pack_dirs
from instruct_ray.data.report.report import OUTCOME_TEXTS, REPORT_FILE
from instruct_ray.evidence.report.formatting import shown_text
from instruct_ray.run.folder import RunFolder

MAX_SOURCES = 20
MAX_TEXTS = 10


@dataclass(frozen=True)
class Count:
    """Rows of one kind."""

    name: str
    detail: str
    num_rows: int
    share: float


@dataclass(frozen=True)
class DataFacts:
    """The data that the model was tuned on."""

    digest: str
    report: str
    """Path of the data report in the run's folder."""
    num_read: int
    outcomes: tuple[Count, ...]
    reasons: tuple[Count, ...]
    """Why rows were quarantined."""
    sources: tuple[tuple[str, str], ...]
    """(name, sha256) of the source files."""
    num_other_sources: int
    tokens: tuple[tuple[str, int], ...]
    """(description, tokens or packs)."""
    labels: tuple[Count, ...]
    """The most frequent short answers of the rows to train on; empty if they are no labels."""
    num_labels: int
    instructions: tuple[Count, ...]
    num_instructions: int


def read_data_facts(folder: RunFolder, packs_digest: str | None) -> DataFacts | None:
    """Read the facts of the packs with this digest, or of the run's first ones; None if the packs were removed."""
    found = [(path, json.loads((path / MANIFEST).read_text())) for path in finished_pack_dirs(folder)]
    if not found:
        return None
    packs_dir, manifest = next((one for one in found if one[1]["digest"] == packs_digest), found[0])
    return _build_facts(folder, packs_dir, manifest, _read_summary(packs_dir))


def _read_summary(packs_dir: Path) -> dict[str, Any]:
    path = packs_dir / "report.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values


def _build_facts(
    folder: RunFolder, packs_dir: Path, manifest: Mapping[str, Any], summary: Mapping[str, Any]
) -> DataFacts:
    num_read, sources = int(manifest["num_read"]), manifest["sources"]
    texts = {str(outcome): text for outcome, text in OUTCOME_TEXTS.items()}
    outcomes = [
        Count(name, detail, count, _share(count, num_read))
        for outcome, count in manifest["fates"].items()
        if count
        for name, detail in (texts.get(outcome, (outcome, "")),)
    ]
    reasons = sorted(manifest.get("quarantine_reasons", {}).items(), key=lambda item: (-item[1], item[0]))
    labels, instructions = summary.get("labels") or {}, summary.get("instructions") or {}
    tokens = (
        ("tokens in the rows to train on", manifest.get("num_tokens")),
        ("tokens computed in an epoch, shared prefixes once", manifest.get("num_computed_tokens")),
        ("target tokens", manifest.get("num_trained_tokens")),
        ("packs", manifest.get("num_packs")),
    )
    return DataFacts(
        digest=manifest["digest"],
        report=str((packs_dir / REPORT_FILE).relative_to(folder.path)),
        num_read=num_read,
        outcomes=tuple(outcomes),
        reasons=tuple(Count(reason.replace("_", " "), "", count, _share(count, num_read)) for reason, count in reasons),
        sources=tuple((shown_text(one["name"], 120), one["sha256"]) for one in sources[:MAX_SOURCES]),
        num_other_sources=max(len(sources) - MAX_SOURCES, 0),
        tokens=tuple((name, int(value)) for name, value in tokens if value is not None),
        labels=_top_texts(labels),
        num_labels=labels.get("num_texts", 0),
        instructions=_top_texts(instructions),
        num_instructions=instructions.get("num_texts", 0),
    )


def _top_texts(summary: Mapping[str, Any]) -> tuple[Count, ...]:
    return tuple(
        Count(shown_text(one["text"], 160), "", one["num_rows"], _share(one["num_rows"], summary["num_rows"]))
        for one in summary.get("most_frequent", [])[:MAX_TEXTS]
    )


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
