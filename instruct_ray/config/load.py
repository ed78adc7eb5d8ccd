"""Loads the config from a YAML file and `section.key=value` overrides, and validates it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from instruct_ray.config.errors import format_validation_error
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, one_line


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load a YAML file and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing or not a mapping, or a key or value is invalid; names file and key.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: not a mapping of sections")
    for override in overrides:
        _apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {format_validation_error(error, Config)}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, leaf = key.split(".")
    if not separator or not sections or not leaf:
        raise InputError(f"override {override!r}: write section.key=value")
    target = raw
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise InputError(f"override {override!r}: {section} is a value, not a section")
    try:
        target[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML; quote it") from None
