"""The tokenizer of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from instruct_ray.base_model.weight_files import check_no_lfs_pointer
from instruct_ray.errors import InputError, one_line

MAX_ERROR_CHARACTERS = 300


def load_tokenizer(model_dir: Path) -> Any:
    """Load a model folder's tokenizer; no code from the folder is run.

    Raises:
        InputError: it can't be loaded, or it has no fast version.
    """
    for file in sorted([*model_dir.glob("*.json"), *model_dir.glob("*.model"), *model_dir.glob("*.jinja")]):
        check_no_lfs_pointer(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    # Missing files, broken JSON, code of its own: each of its classes raises other exceptions.
    except Exception as error:
        raise InputError(
            f"{model_dir}: the tokenizer can't be loaded: {one_line(error, MAX_ERROR_CHARACTERS)}; add the files of "
            "the model's tokenizer"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(f"{model_dir}: {type(tokenizer).__name__} has no fast version; add a tokenizer.json")
    return tokenizer
