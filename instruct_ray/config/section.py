"""The base class of all config sections."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict
from pydantic.functional_validators import AfterValidator


def _make_absolute(path: Path) -> Path:
    if ":/" in str(path):
        raise ValueError("needs a folder that every node sees under the same path (NFS, EFS, Filestore), not a URI")
    return path.expanduser().absolute()


# Made absolute here, once, since Ray workers run in another working directory.
AbsolutePath = Annotated[Path, AfterValidator(_make_absolute)]


def _refuse_password(uri: str) -> str:
    if urlsplit(uri).password:
        raise ValueError(
            "it has a password, which the run's folder would keep; leave it out and pass it in the environment: "
            "MLFLOW_TRACKING_PASSWORD for MLflow, PGPASSWORD for PostgreSQL, api_key_env of another endpoint"
        )
    return uri


# The config of a run is stored in its folder.
UriWithoutPassword = Annotated[str, AfterValidator(_refuse_password)]


class Section(BaseModel):
    """A config section: frozen, rejects unknown keys, and the docstring under a field describes it to the user."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
