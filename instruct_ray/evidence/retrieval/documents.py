"""driver: text files -> passages of bounded length."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.errors import InputError

FIELD = "evidence.documents"
# What is read from a folder. A file that is named itself may have any name.
SUFFIXES = (".txt", ".md")
# A longer run of characters without white space, such as a sentence of Chinese, may be split.
MAX_WORD_CHARACTERS = 20
# Words that are counted at a time.
WORDS_PER_BATCH = 4096


def find_documents(paths: Sequence[Path]) -> list[Path]:
    """Find the files of `evidence.documents`, in a fixed order.

    Raises:
        InputError: a file or folder is missing, or a folder has no text files.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise InputError(f"{FIELD}: {path} has no {' or '.join(SUFFIXES)} files")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{FIELD}: no file or folder {path}")
    return list(dict.fromkeys(files))


def read_passages(files: Sequence[Path], renderer: Renderer, passage_tokens: int) -> list[str]:
    """Read files and split them into passages of a maximum length, at paragraphs if possible, else at words.

    Raises:
        InputError: a file is no text in UTF-8, or all are empty; names it.
    """
    passages: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{FIELD}: {file} is no text in UTF-8 (byte {error.start}); convert it first") from None
        passages += split_text(text, passage_tokens, lambda words: _count_tokens(renderer, words))
    passages = list(dict.fromkeys(passages))
    if not passages:
        raise InputError(f"{FIELD}: the files have no text")
    return passages


def split_text(text: str, max_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> Iterator[str]:
    """Split a text into passages; a passage ends at the end of a paragraph, if it is at least half full there.

    Args:
        text: the text.
        max_tokens: tokens of a passage; 20 characters without white space may have more.
        count_tokens: counts the tokens of each of many words.
    """
    # Words with the white space after them.
    words = re.findall(rf"\S{{1,{MAX_WORD_CHARACTERS}}}\s*", text)
    passage, num_tokens = list[str](), 0
    for start in range(0, len(words), WORDS_PER_BATCH):
        batch = words[start : start + WORDS_PER_BATCH]
        for word, length in zip(batch, count_tokens(batch), strict=True):
            ends_paragraph = bool(passage) and passage[-1].count("\n") > 1
            if passage and (num_tokens + length > max_tokens or (ends_paragraph and 2 * num_tokens >= max_tokens)):
                yield "".join(passage).strip()
                passage, num_tokens = [], 0
            passage.append(word)
            num_tokens += length
    if passage:
        yield "".join(passage).strip()


def _count_tokens(renderer: Renderer, words: list[str]) -> list[int]:
    # Each with a space before it, as within a text.
    encoded = renderer.tokenizer([f" {word.rstrip()}" for word in words], add_special_tokens=False)
    return [len(ids) for ids in encoded["input_ids"]]
