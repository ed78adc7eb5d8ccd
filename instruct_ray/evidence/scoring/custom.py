"""A user's own measure: a function `(answer, expected, row) -> float`, named as `module:function` in the config."""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instruct_ray.errors import InputError

FIELD = "evidence.metric"
RUN_AGAIN = "mend or remove it and run the command again; no answer is asked for twice"
Metric = Callable[[str, str, Mapping[str, Any]], float]


def load_metric(spec: str) -> Metric:
    """Import the function that `module:function` names.

    Args:
        spec: such as `my_project.scores:similarity`; the module must be importable.

    Raises:
        ValueError: the text has another form, the module can't be imported, or it has no such function of three
            arguments. The message names the config field.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        raise ValueError(f"{FIELD}: {spec!r} is not of the form module:function")
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # The module is the user's: its import may raise anything.
        raise ValueError(f"{FIELD}: can't import {module_name}: {type(error).__name__}: {error}") from error
    function = vars(module).get(name)
    if not callable(function):
        raise ValueError(f"{FIELD}: {module_name} has no function {name}")
    try:
        inspect.signature(function).bind("", "", {})
    except TypeError as error:
        raise ValueError(f"{FIELD}: {spec} must take (answer, expected, row): {error}") from error
    metric: Metric = function
    return metric


def score_rows(
    metric: Metric, answers: Sequence[str], expected: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score each answer with the user's function.

    Args:
        metric: from `load_metric`.
        answers: shape [rows].
        expected: the expected outputs, shape [rows].
        rows: the fields of each row, with its `id`, shape [rows].

    Returns:
        One finite number per row.

    Raises:
        InputError: the function failed, or returned no finite number; the message names the row and the config field.
    """
    scores = []
    for answer, target, row in zip(answers, expected, rows, strict=True):
        try:
            value = metric(answer, target, row)
        except Exception as error:
            # The function is the user's: it may raise anything.
            raise InputError(
                f"{FIELD}: failed on row {row['id']}: {type(error).__name__}: {error}; {RUN_AGAIN}"
            ) from error
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise InputError(f"{FIELD}: returned {value!r} for row {row['id']}, which is no finite number; {RUN_AGAIN}")
        scores.append(score)
    return scores
