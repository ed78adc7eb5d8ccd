"""triples and a model -> answers.    python -m jobs.generate --config F --input questions.jsonl --output answers"""

import json
from pathlib import Path

from instruct_ray.config import Config
from instruct_ray.console import Status
from instruct_ray.errors import InputError
from instruct_ray.run import RunFolder
from jobs import runner

# What the counts are called.
FATES = {"stop": "answered", "length": "answered up to serving.max_new_tokens", "too_long": "too long for the model"}


def main(config: Config, model: str | None, output: Path) -> None:
    """Answer every row of the input with the tuned model of the run, or with another model."""
    with Status("generate") as status:
        status("loading libraries")
        from instruct_ray.inference.batch import generate  # noqa: PLC0415  (seconds: here it is not silent)

        status("looking at model and input")
        generated, already_done = generate(config, _folder(config, model), output, status, runner.connect)
    assert generated.counts is not None, "all rows are answered"
    print(f"{'already generated' if already_done else 'generated'}: {generated.num_rows:,} rows")
    for fate, count in sorted(generated.counts.items(), key=lambda fate: -fate[1]):
        print(f"  {count:>9,} {FATES.get(fate, f'can not be read ({fate})')}")
    print(f"-> {output}/part-*.jsonl")


def _folder(config: Config, model: str | None) -> Path:
    """The model's folder; a registered version is fetched once, to where every node sees it."""
    if model is None:
        folder = RunFolder.of(config).model
        if not folder.is_dir():
            raise InputError(f"{folder}: no tuned model; run `python -m jobs.tune` with this config, or name a --model")
        return folder
    if not model.startswith("models:"):
        if not Path(model).is_dir():
            raise InputError(f"--model: no folder {model}; give a model folder or models:/NAME@ALIAS")
        return Path(model).absolute()
    # MLflow, and only for this.
    from instruct_ray.registry.versions import Registry  # noqa: PLC0415
    from instruct_ray.tracking.client import existing_registry  # noqa: PLC0415

    registry = Registry(existing_registry(config))
    return registry.fetch(registry.resolve(model), config.run.storage / "versions")


def cli() -> None:
    """The runner's command line, and what is answered with which model to where."""
    parser = runner.parser(__doc__)
    parser.add_argument(
        "--input", required=True, help="rows to answer, as an entry of data.sources: a path or {path: …}"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the answers, seen by every node")
    parser.add_argument("--model", help="model folder or models:/NAME@ALIAS; the run's tuned model if not given")
    arguments = parser.parse_args()
    source = arguments.input if arguments.input.startswith("{") else json.dumps(arguments.input)
    arguments.overrides.append(f"data.sources=[{source}]")
    runner.run_parsed(arguments, lambda config: main(config, arguments.model, arguments.output.absolute()))


if __name__ == "__main__":
    cli()
