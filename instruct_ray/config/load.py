"""Loads the config from a YAML file and `section.key=value` overrides, and validates it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from instruct_ray.config.errors import format_validation_error
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, one_line

STANDARD_INPUT = Path("-")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load a YAML file, or standard input for `-`, and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing or not a mapping, or a key or value is invalid; names file and key.
    """
    return parse_config(*read_text(path), overrides)


def read_text(path: Path) -> tuple[str, str]:
    """Read a config file, or standard input for `-`; returns its text and what messages call it.

    Raises:
        InputError: there is no such file.
    """
    if path == STANDARD_INPUT:
        return sys.stdin.read(), "standard input"
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    return path.read_text(), str(path)


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """The config in a text; `name` is what messages call it. See `load_config`."""
    values = read_values(text, name, overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{name}: {format_validation_error(error, Config)}") from None


def read_values(text: str, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values in a text with the overrides applied, not validated.

    Raises:
        InputError: the text is not YAML or not a mapping.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{name}: not a mapping of sections")
    for override in overrides:
        _apply_override(raw, override)
    return raw


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
