"""pure: the export formats."""

from typing import Literal

from instruct_ray.config.schema import LoraConfig

ExportFormat = Literal["full", "adapter", "merged"]


def export_format(lora: LoraConfig | None) -> ExportFormat:
    """All weights, an adapter, or the base model with the adapter merged into it."""
    if lora is None:
        return "full"
    return "merged" if lora.merge else "adapter"
