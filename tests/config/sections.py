"""Finds the sections of the config schema."""

from typing import Any, get_args

from pydantic import BaseModel


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """Find the sections in an annotation such as `tuple[Annotated[Section, ...], ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in find_sections(argument)]


def find_nested_sections(section: type[BaseModel]) -> set[type[BaseModel]]:
    """Find all sections inside a section, at any depth."""
    nested = {part for field in section.model_fields.values() for part in find_sections(field.annotation)}
    return nested.union(*map(find_nested_sections, nested))
