"""Rows to measure on: CLINC150, the Alpaca demo, and a generated set of any size."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.machine import ROOT

# Real data lies beside the repository, never in it.
REAL_DATA = ROOT.parent / "shared" / "data"
CLINC_INSTRUCTION = "Name the intent of the user's request."
NUM_INSTRUCTIONS = 400
Row = dict[str, str]


class NoDataError(Exception):
    """The real data is not on this machine."""


def _read(name: str) -> object:
    path = REAL_DATA / name
    if not path.is_file():
        raise NoDataError(f"no {path}: what needs it is skipped")
    return json.loads(path.read_text())


def clinc(split: str = "train", seed: int = 0) -> list[Row]:
    """Queries and their intents (150 of them) under one fixed instruction, shuffled."""
    pairs = _read("clinc150_full.json")[split]  # type: ignore[index]
    rows = [
        {"instruction": CLINC_INSTRUCTION, "input": text, "output": intent.replace("_", " ")} for text, intent in pairs
    ]
    random.Random(seed).shuffle(rows)
    return rows


def alpaca(seed: int = 0) -> list[Row]:
    """General triples, nearly every instruction another one, long outputs; shuffled."""
    rows: list[Row] = list(_read("alpaca_en_demo.json"))  # type: ignore[call-overload]
    random.Random(seed).shuffle(rows)
    return rows


def real(name: str) -> list[Row]:
    """A real data set by name."""
    return {"clinc": clinc, "alpaca": alpaca}[name]()


def generated(num_rows: int, seed: int = 0) -> Iterator[Row]:
    """Rows as instruction data has them: several hundred instructions, inputs of 5 to 60 words, short or long outputs.

    The words are those of the English that CLINC150 users wrote where it is at hand, else made up; the same rows for
    the same seed.
    """
    generator = random.Random(seed)
    words = _words()
    instructions = [_sentence(generator, words, 6, 18) for _ in range(NUM_INSTRUCTIONS)]
    labels = [_sentence(generator, words, 1, 3) for _ in range(150)]
    for _ in range(num_rows):
        # A label three times out of four, else an answer of some sentences.
        output = generator.choice(labels) if generator.random() < 0.75 else _sentence(generator, words, 8, 40)
        yield {
            # A few instructions have most of the rows.
            "instruction": instructions[int(NUM_INSTRUCTIONS * generator.random() ** 3)],
            "input": _sentence(generator, words, 5, 5 + int(55 * generator.random() ** 3)),
            "output": output,
        }


def _words() -> list[str]:
    try:
        text = " ".join(row["input"] for row in clinc())
    except NoDataError:
        return [f"{a}{b}{c}" for a in ("ba", "cor", "del", "fin", "mo") for b in "aeiou" for c in ("n", "ster", "t")]
    return text.split()


def _sentence(generator: random.Random, words: Sequence[str], low: int, high: int) -> str:
    start = generator.randrange(len(words))
    size = generator.randint(low, high)
    # Runs of three words of real text, from different places: looks like language to the tokenizer, repeats nothing.
    runs = (words[at : at + 3] for at in (generator.randrange(len(words)) for _ in range(size // 3 + 1)))
    return " ".join([words[start], *(word for run in runs for word in run)][:size]).capitalize()


def write_jsonl(rows: Iterator[Row] | Sequence[Row], path: Path) -> None:
    """Write rows as a source file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def line_starts(path: Path) -> list[int]:
    """Where each line of a file begins, in bytes."""
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    return list(itertools.accumulate(sizes[:-1], initial=0))


def in_order_of_prepare(rows: Sequence[Row], seed: int = 0) -> list[int]:
    """Indices in the order in which `prepare` fills packs: rows of one instruction together, shuffled among them."""

    def key(index: int) -> tuple[int, int]:
        row = rows[index]
        return _hash(seed, row["instruction"] if row["input"] else ""), _hash(seed, str(index))

    return sorted(range(len(rows)), key=key)


def _hash(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")
