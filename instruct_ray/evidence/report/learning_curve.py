"""driver: reads `learning_curve.json`."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError

LEARNING_CURVE_FILE = "learning_curve.json"


class LearningPoint(BaseModel):
    """Accuracy of a model that was tuned on a part of the rows."""

    model_config = ConfigDict(frozen=True)

    fraction: float
    num_rows: int
    accuracy: float
    lower: float | None
    upper: float | None


class Doubling(BaseModel):
    """What twice the rows should buy."""

    model_config = ConfigDict(frozen=True)

    gain: float | None
    lower: float | None
    upper: float | None
    sentence: str


class LearningCurve(BaseModel):
    """The content of `learning_curve.json`."""

    model_config = ConfigDict(frozen=True)

    points: tuple[LearningPoint, ...]
    fit: str
    doubling: Doubling | None


def read_learning_curve(path: Path) -> LearningCurve | None:
    """Read the curve; None if `instruct-ray learning-curve` was not run.

    Raises:
        InputError: the file can't be used.
    """
    if not path.is_file():
        return None
    try:
        curve = LearningCurve.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{path}: can't be used; remove it and run `instruct-ray learning-curve` again") from error
    return curve.model_copy(update={"points": tuple(sorted(curve.points, key=lambda point: point.num_rows))})
