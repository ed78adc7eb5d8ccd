"""The base class of all config sections."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict
from pydantic.functional_validators import AfterValidator


def _make_absolute(path: Path) -> Path:
    if ":/" in str(path):
        raise ValueError("needs a folder that every node sees under the same path (NFS, EFS, Filestore), not a URI")
    return path.expanduser().absolute()


# Made absolute here, once, since Ray workers run in another working directory.
AbsolutePath = Annotated[Path, AfterValidator(_make_absolute)]


class Section(BaseModel):
    """A config section: frozen, rejects unknown keys, and the docstring under a field describes it to the user."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
