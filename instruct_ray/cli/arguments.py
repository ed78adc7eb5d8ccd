"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path, typer.Option("--config", help="YAML file, or - for standard input; examples are in jobs/configs.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that replace those of the file.", show_default=False),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model.")]
RegistryFile = Annotated[Path | None, typer.Option("--config", help="YAML file whose registry and gate are used.")]
RegistryUri = Annotated[str | None, typer.Option("--registry", help="MLflow URI, instead of a config file.")]
