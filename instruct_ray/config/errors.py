"""What is wrong with a config, in one line: the key, and the one that was probably meant."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def format_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a config in words; `model` is the class that was validated."""
    problem = error.errors()[0]
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _siblings(location, model), n=1)
        return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    # What concerns several sections has no key.
    return f"{key}: {problem['msg']}" if key else str(problem["msg"])


def _siblings(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        # A number is a place in a list, whose annotation already led to the model of its entries.
        if isinstance(part, str):
            [model] = _models_in(model.model_fields[part].annotation)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation such as `tuple[Annotated[Model, …], ...]` or `Model | None` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models_in(option)]
