"""The config of a job: checked on this machine, and sent as text, so that the cluster reads the same file."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.load import parse_config, read_text, read_values
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError

# The line that ends the config in the job's command.
END = "END-OF-CONFIG"
PACKAGE = "package:"


@dataclass(frozen=True)
class JobConfig:
    """A config file and its overrides, as they were given."""

    text: str
    overrides: tuple[str, ...]
    values: dict[str, Any]
    """The values of both, with paths as they were written: relative ones are those of the cluster."""
    config: Config
    """The same, validated. Its paths were made absolute on this machine."""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str]) -> "JobConfig":
        """Read and validate a config; `-` is standard input.

        Raises:
            InputError: it is invalid, or no job can be run with it.
        """
        text, name = read_text(path)
        config = parse_config(text, name, overrides)
        job = cls(text, tuple(overrides), read_values(text, name, overrides), config)
        job._check_sent(name)
        return job

    def command(self, stage: str) -> str:
        """The shell command that runs a stage with this config."""
        command = ["python", "-m", "instruct_ray", stage, "--config", "-", *self.overrides]
        return f"{shlex.join(command)} <<'{END}'\n{self.text.rstrip()}\n{END}"

    def files(self) -> list[str]:
        """Paths that the cluster must have: source files, documents and the folder of the base model, as written."""
        sources = [one if isinstance(one, str) else one["path"] for one in self.values["data"]["sources"]]
        documents = self.values.get("evidence", {}).get("documents") or []
        base = self.values["model"]["base"]
        folders = [base] if base.startswith(("/", "./", "../", "~")) else []
        return [path for path in map(str, [*sources, *documents, *folders]) if "://" not in path and path[:4] != "hub:"]

    def modules(self) -> list[str]:
        """Packages that the cluster must have beside those of the project: the base model's, and that of a measure."""
        base, metric = self.config.model.base, self.config.evidence.metric
        names = [base.removeprefix(PACKAGE)] if base.startswith(PACKAGE) else []
        return [*names, *([metric.partition(":")[0]] if metric else [])]

    def _check_sent(self, name: str) -> None:
        storage = str(self.values["run"]["storage"])
        if not Path(storage).expanduser().is_absolute():
            raise InputError(
                f"{name}: run.storage: {storage} is relative; a job needs a folder that all nodes of the cluster see, "
                "such as run.storage=/mnt/shared/runs"
            )
        if re.search(rf"^{END}$", self.text, re.MULTILINE):
            raise InputError(f"{name}: the line {END} would end the config; remove it")
