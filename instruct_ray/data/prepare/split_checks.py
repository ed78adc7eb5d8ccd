"""Checks of the split: every side has rows, and the held-out shares are near what was asked for. Pure."""

import math
from collections.abc import Iterator, Mapping

from instruct_ray.config.data import DataConfig
from instruct_ray.data.prepare.split_rule import KeyCounts
from instruct_ray.errors import InputError

# A held-out share is far from its fraction if it is larger by this much, or less than a quarter of it, and by more
# than this many standard deviations of the share that independent rows would have.
MAX_SHARE_EXCESS = 0.15
MAX_DEVIATIONS = 5
# Outcomes of rows that were on one side of the split.
SPLIT_OUTCOMES = ("trained", "test", "validation", "near_duplicate", "left_out")


def check_held_out(data: DataConfig, outcomes: Mapping[str, int], num_read: int, split_keys: KeyCounts) -> None:
    """Check, before rows are packed, that each requested held-out split has rows.

    Raises:
        InputError: it has none; says what became of the rows.
    """
    for split, fraction in _requested_splits(data):
        if not outcomes[split]:
            others = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
            raise InputError(
                f"data.{split}_fraction={fraction}: no row is held out of {num_read} read"
                f"{f' ({others})' if others else ''}{_describe_cause(split_keys)}; add more rows"
            )


def check_split(data: DataConfig, outcomes: Mapping[str, int], split_keys: KeyCounts) -> None:
    """Check that rows are left to train on, and that the held-out shares are near the requested fractions.

    Raises:
        InputError: they are not; names the input or prompt that most rows share.
    """
    cause = _describe_cause(split_keys)
    if not outcomes["trained"]:
        raise InputError(f"data.sources: no row is left to train on{cause}")
    num_rows = sum(outcomes[outcome] for outcome in SPLIT_OUTCOMES)
    for split, fraction in _requested_splits(data):
        if _is_far(outcomes[split], num_rows, fraction):
            raise InputError(
                f"data.{split}_fraction={fraction}: {outcomes[split]} of {num_rows} rows would be held out, "
                f"{outcomes[split] / num_rows:.0%}{cause}; use inputs that differ, or leave `input` empty"
            )


def _requested_splits(data: DataConfig) -> Iterator[tuple[str, float]]:
    for split, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if fraction:
            yield split, fraction


def _is_far(num_held_out: int, num_rows: int, fraction: float) -> bool:
    share = num_held_out / num_rows
    noise = MAX_DEVIATIONS * math.sqrt(fraction * (1 - fraction) / num_rows)
    return share > fraction + max(MAX_SHARE_EXCESS, noise) or share < min(fraction / 4, fraction - noise)


def _describe_cause(split_keys: KeyCounts) -> str:
    description = split_keys.describe_most_frequent()
    return f": {description}" if description else ""
