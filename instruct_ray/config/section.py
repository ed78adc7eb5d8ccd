"""What every section of the configuration is: frozen, strict, and documented field by field."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict
from pydantic.functional_validators import AfterValidator


def _absolute(path: Path) -> Path:
    if ":/" in str(path):
        raise ValueError("needs a folder that every node sees under the same path (NFS, EFS, Filestore), not a URI")
    return path.expanduser().absolute()


# Ray workers change their working directory, so paths are made absolute once, here.
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about unknown keys, each field described by the text below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
