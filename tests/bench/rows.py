"""Rows for the benchmarks: CLINC150, the Alpaca demo, and generated rows."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.machine import ROOT

# Real data is outside the repository.
REAL_DATA = ROOT.parent / "shared" / "data"
CLINC_INSTRUCTION = "Name the intent of the user's request."
NUM_INSTRUCTIONS = 400
Row = dict[str, str]


class MissingDataError(Exception):
    """A real data set is not on this machine."""


def _read(name: str) -> object:
    path = REAL_DATA / name
    if not path.is_file():
        raise MissingDataError(f"{path} is missing")
    return json.loads(path.read_text())


def clinc(split: str = "train", seed: int = 0) -> list[Row]:
    """Load user queries with their intents (150) as outputs, under one instruction, shuffled."""
    pairs = _read("clinc150_full.json")[split]  # type: ignore[index]
    rows = [
        {"instruction": CLINC_INSTRUCTION, "input": text, "output": intent.replace("_", " ")} for text, intent in pairs
    ]
    random.Random(seed).shuffle(rows)
    return rows


def alpaca(seed: int = 0) -> list[Row]:
    """Load general triples with mostly distinct instructions and long outputs, shuffled."""
    rows: list[Row] = list(_read("alpaca_en_demo.json"))  # type: ignore[call-overload]
    random.Random(seed).shuffle(rows)
    return rows


def load_real(name: str) -> list[Row]:
    """Load a real data set by name."""
    return {"clinc": clinc, "alpaca": alpaca}[name]()


def generate_rows(num_rows: int, seed: int = 0) -> Iterator[Row]:
    """Generate rows like instruction data: hundreds of instructions, inputs of 5 to 60 words, short or long outputs.

    The words are from CLINC150 if it is on this machine, else artificial. The rows are the same for the same seed.
    """
    generator = random.Random(seed)
    words = _words()
    instructions = [_sentence(generator, words, 6, 18) for _ in range(NUM_INSTRUCTIONS)]
    labels = [_sentence(generator, words, 1, 3) for _ in range(150)]
    for _ in range(num_rows):
        # A label in three of four rows, else a longer answer.
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
    except MissingDataError:
        return [f"{a}{b}{c}" for a in ("ba", "cor", "del", "fin", "mo") for b in "aeiou" for c in ("n", "ster", "t")]
    return text.split()


def _sentence(generator: random.Random, words: Sequence[str], low: int, high: int) -> str:
    start = generator.randrange(len(words))
    num_words = generator.randint(low, high)
    # Three consecutive words from each of several places: similar to language for the tokenizer, without repetition.
    starts = (generator.randrange(len(words)) for _ in range(num_words // 3 + 1))
    trigrams = (words[index : index + 3] for index in starts)
    return " ".join([words[start], *(word for trigram in trigrams for word in trigram)][:num_words]).capitalize()


def write_jsonl(rows: Iterator[Row] | Sequence[Row], path: Path) -> None:
    """Write rows as a JSONL source file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def line_offsets(path: Path) -> list[int]:
    """Compute the byte offset of each line of a file."""
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    return list(itertools.accumulate(sizes[:-1], initial=0))


def sort_as_prepare(rows: Sequence[Row], seed: int = 0) -> list[int]:
    """Sort the rows as `prepare` packs them: grouped by instruction, shuffled inside a group. Returns their indices."""

    def key(index: int) -> tuple[int, int]:
        row = rows[index]
        return _hash(seed, row["instruction"] if row["input"] else ""), _hash(seed, str(index))

    return sorted(range(len(rows)), key=key)


def _hash(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")
