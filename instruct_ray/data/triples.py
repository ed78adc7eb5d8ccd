"""Files -> triples, row by row; what is wrong with a row, in words."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.errors import InputError

FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Triple:
    """One row: an instruction, what it is applied to (may be empty), and the answer."""

    id: str
    instruction: str
    input: str
    output: str

    @property
    def split_key(self) -> str:
        """What decides the side of the split: the input, so that a reworded instruction can't leak it."""
        return " ".join((self.input or self.instruction).casefold().split())

    def is_test(self, fraction: float) -> bool:
        """Whether the row is held out: a hash of `split_key`, so the same on every machine and for every order."""
        bucket = int.from_bytes(hashlib.sha256(self.split_key.encode()).digest()[:8], "big")
        return bucket < fraction * 2**64


def check_sources(sources: tuple[Path, ...]) -> None:
    """Refuse what can't be read, before anything starts.

    Raises:
        InputError: a source is missing, a folder, empty, or of an unknown kind.
    """
    for source in sources:
        if not source.is_file():
            raise InputError(f"data.sources: no file {source}")
        if source.suffix not in (".jsonl", ".json"):
            raise InputError(f"data.sources: {source} is neither .jsonl nor .json")
        if source.stat().st_size == 0:
            raise InputError(f"data.sources: {source} is empty")


def read_rows(source: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, parsed JSON or the error that it is not) for every row of a file.

    Lines end at line feeds only: other separators, such as U+2028, are legal inside JSON strings.
    """
    if source.suffix == ".json":
        try:
            rows = json.loads(source.read_bytes())
        except (ValueError, RecursionError) as error:
            yield 1, InputError(f"is not JSON ({error})")
            return
        yield from enumerate(rows if isinstance(rows, list) else [InputError("is not an array of triples")], start=1)
        return
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, InputError(f"is not JSON ({error})")


def parse(row: Any, default_id: str) -> Triple:
    """A JSON value -> a triple.

    Raises:
        InputError: it is no object, or a field is missing, not text, or empty; says which.
    """
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"is {type(row).__name__}, not an object with {', '.join(FIELDS)}")
    values = {"input": "", **row}
    for field in FIELDS:
        if field not in values:
            raise InputError(f"has no {field}")
        if not isinstance(values[field], str):
            raise InputError(f"has {field} = {values[field]!r}, which is not text")
        if field != "input" and not values[field].strip():
            raise InputError(f"has an empty {field}: nothing to {'train on' if field == 'output' else 'ask'}")
    return Triple(str(values.get("id", default_id)), *(values[field] for field in FIELDS))
