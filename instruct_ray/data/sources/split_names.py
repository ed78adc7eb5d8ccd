"""The split of a data set that a file belongs to, by its name: `test.jsonl` beside `train.jsonl`. Pure."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

# As in Hugging Face's `datasets`.
SPLIT_KEYWORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_KEYWORD = "|".join(SPLIT_KEYWORDS)
# Files of the hub: data/train-00000-of-00002-0123abcd.parquet. The split may have a longer name, such as train_sft.
_SHARD_NAME = re.compile(rf"(?P<split>(?:.*[-_ .])?(?:{_KEYWORD})(?:[-_ .].*)?)-\d{{5}}-of-\d{{5}}(?:-[0-9a-f]+)?")
# Others: train.jsonl, chats-test.json, dev_2.csv, test_set.tsv, test.en.jsonl.
_FILE_NAME = re.compile(
    rf"(?:.*[-_ .])?(?P<split>{_KEYWORD})(?:[-_ .]?(?:set|data|dataset|split|file|rows))?"
    r"(?:[-_ .]?\d+)?(?:\.[a-z]{2})?"
)


def find_split(relative_path: str, suffixes: str) -> str | None:
    """Return the split that a file's name or one of its folders tells, None if they tell none.

    Args:
        relative_path: the path inside the source.
        suffixes: the suffixes of the file's name, which are no part of it.
    """
    path = PurePosixPath(relative_path.lower())
    name = path.name.removesuffix(suffixes.lower())
    for pattern in (_SHARD_NAME, _FILE_NAME):
        if match := pattern.fullmatch(name):
            return normalize_split(match["split"])
    return next((SPLIT_KEYWORDS[part] for part in reversed(path.parts[:-1]) if part in SPLIT_KEYWORDS), None)


def normalize_split(split: str) -> str:
    """Return the usual name of a split: `validation` for `dev`."""
    return SPLIT_KEYWORDS.get(split.lower(), split.lower())


def choose_split(splits: Sequence[str | None], requested: str) -> set[str | None]:
    """Choose which of the splits of a source's files are read.

    Files whose names tell no split belong to the training split. A source whose files are all of one split is read
    whatever that is: the user named it.

    Raises:
        LookupError: the files are of several splits, but none of the requested one.
    """
    found = set(splits)
    chosen = found & ({requested, None} if requested == "train" else {requested})
    if chosen:
        return chosen
    if len(found) == 1 and requested == "train":
        return found
    raise LookupError
