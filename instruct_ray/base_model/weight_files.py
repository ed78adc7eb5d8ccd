"""The safetensors files of a model folder: whether they are complete, and what their headers say. Reads no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from instruct_ray.errors import InputError, one_line

# What transformers loads, in this order.
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
# Bytes at the start of a safetensors file that hold the length of its header.
LENGTH_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    file: Path
    dtype: str
    """As safetensors names it, for example BF16."""
    shape: tuple[int, ...]


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the names, types and shapes of a model folder's weights.

    Raises:
        InputError: a file is missing, cut off, or no safetensors file; names it.
    """
    return {name: tensor for file in _list_files(folder) for name, tensor in read_header(file).items()}


def read_header(file: Path) -> Mapping[str, StoredTensor]:
    """Read the names, types and shapes of the tensors in a safetensors file, which has to be complete.

    Raises:
        InputError: it is missing, cut off, or no safetensors file.
    """
    check_no_lfs_pointer(file)
    try:
        with safe_open(file, framework="pt") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118  (not a mapping)
            return {
                name: StoredTensor(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} {_describe_damage(file) or f'can not be read: {one_line(error)}'}") from None


def check_no_lfs_pointer(file: Path) -> None:
    """Check that a file is itself, not what Git stores in its place.

    Raises:
        InputError: it is a Git LFS pointer, or it can't be read.
    """
    try:
        with file.open("rb") as content:
            start = content.read(len(LFS_POINTER))
    except OSError as error:
        raise InputError(f"{file} can't be read: {one_line(error)}") from None
    if start == LFS_POINTER:
        raise InputError(
            f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in that folder, or download the "
            "model again"
        )


def _list_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise InputError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{_explain_missing(folder)}")
    check_no_lfs_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is no index of safetensors files; download the model again") from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(
            f"{folder} lacks {len(missing)} of its {len(names)} files with weights, such as {missing[0]}; download the "
            "model again"
        )
    return [folder / name for name in names]


def _explain_missing(folder: Path) -> str:
    if shards := sorted(folder.glob("model-*.safetensors")):
        return f", although it has {shards[0].name}; download the model again"
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        return f", only {pickles[0].name}; pickles are never loaded, so convert it to safetensors"
    return "; give a Hugging Face model folder"


def _describe_damage(file: Path) -> str | None:
    """How a file differs from the length that its header states; None if it doesn't, or has no such header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            header_length = int.from_bytes(content.read(LENGTH_BYTES), "little")
            if header_length > size:
                return f"is no safetensors file, or cut off after {size:,} bytes; download it again"
            header = json.loads(content.read(header_length))
        data_length = max((end for _, end in _data_offsets(header)), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    expected = LENGTH_BYTES + header_length + data_length
    return f"has {size:,} bytes, its header says {expected:,}; download it again" if size != expected else None


def _data_offsets(header: dict[str, dict[str, tuple[int, int]]]) -> list[tuple[int, int]]:
    return [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
