"""Formats a config validation error as one line: the key, what is wrong, and the key that was probably meant."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def format_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Format the first problem; `model` is the class that was validated."""
    problem = error.errors()[0]
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        matches = difflib.get_close_matches(str(location[-1]), _valid_keys(location, model), n=1)
        return f"unknown key {key}" + (f"; did you mean {matches[0]}?" if matches else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    # A problem between sections has no key.
    return f"{key}: {problem['msg']}" if key else str(problem["msg"])


def _valid_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys of the section that a location is in."""
    for part in location[:-1]:
        # An integer is an index of a list, whose annotation already led to the model of its elements.
        if isinstance(part, str):
            [model] = _find_models(model.model_fields[part].annotation)
    return list(model.model_fields)


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `tuple[Annotated[Model, ...], ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _find_models(argument)]
