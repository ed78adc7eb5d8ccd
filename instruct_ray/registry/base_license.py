"""The licence of a base model, as far as its folder states one."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

NOT_STATED = "not stated"
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
MAX_CHARACTERS = 120


def find_base_license(folder: Path | None) -> str:
    """Find the licence in the README's front matter, the licence file or config.json; `not stated` if there is none."""
    if folder is None:
        return NOT_STATED
    return _from_readme(folder) or _from_license_file(folder) or _from_config(folder) or NOT_STATED


def _from_readme(folder: Path) -> str | None:
    path = folder / "README.md"
    match = FRONT_MATTER.match(path.read_text(errors="replace")) if path.is_file() else None
    if match is None:
        return None
    try:
        values = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return None
    return _text(values.get("license"), "README.md") if isinstance(values, dict) else None


def _from_license_file(folder: Path) -> str | None:
    for name in LICENSE_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").split("\n")
            return _text(next((line.strip() for line in lines if line.strip()), None), name)
    return None


def _from_config(folder: Path) -> str | None:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        return None
    return _text(values.get("license"), "config.json") if isinstance(values, dict) else None


def _text(value: Any, file: str) -> str | None:
    return f"{' '.join(value.split())[:MAX_CHARACTERS]} (from its {file})" if isinstance(value, str) and value else None
