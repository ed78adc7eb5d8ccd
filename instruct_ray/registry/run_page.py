"""What MLflow shows of a registered run beside its files: figures of the evidence and data with digests. Pure."""

from collections.abc import Mapping
from typing import Any

from instruct_ray.registry.lineage import Lineage
from instruct_ray.tracking.run_page import UsedDataset

# Of source files; all of them are in `lineage.json`.
MAX_DATASETS = 50
# Keys of an arm in the evidence that are shown as they are.
FIGURES = ("accuracy", "prompt_tokens", "completion_tokens", "tokens_per_right_answer", "requests_per_second_at_8")


def list_figures(evidence: Mapping[str, Any]) -> dict[str, float]:
    """The figures of all arms, named `ARM.FIGURE`. Rounded: with all digits a page shows them cut off."""
    figures: dict[str, float] = {}
    for arm, values in evidence["arms"].items():
        shown = {name: values.get(name) for name in FIGURES} | dict(values.get("scores") or {})
        for quantile in ("p50", "p95"):
            shown[f"{quantile}_seconds"] = ((values.get("latency") or {}).get(quantile) or {}).get("value")
        figures |= {f"{arm}.{name}": round(value, 5) for name, value in shown.items() if value is not None}
    return figures


def list_datasets(lineage: Lineage, evidence: Mapping[str, Any]) -> list[UsedDataset]:
    """The source files of the packs and the test rows of the evidence."""
    packs = lineage.packs
    sources = [] if packs is None else list(packs.sources[:MAX_DATASETS])
    # A row count is known of all files together.
    num_rows = packs.num_read if packs is not None and len(packs.sources) == 1 else None
    datasets = [UsedDataset(source.name, source.sha256, "training", num_rows) for source in sources]
    if digest := evidence.get("test_digest"):
        datasets.append(UsedDataset("test rows", digest, "evaluation", evidence.get("num_test")))
    return datasets
