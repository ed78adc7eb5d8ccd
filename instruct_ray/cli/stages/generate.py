"""`instruct-ray generate`: the generate stage, from a file of rows to a folder of answers, without an endpoint."""

from pathlib import Path

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import require_registry_uri

# How finish reasons are printed. Any other reason says why a row could not be read.
FINISH_REASON_TEXTS = {
    "stop": "answered",
    "length": "answered up to serving.max_new_tokens",
    "too_long": "too long for the model",
}


def run_generate(config: Config, model: str | None, output: Path) -> None:
    """Answer every row of `data.sources` with a model, which is the tuned model of the run if `model` is None."""
    with StatusLine("generate") as status:
        status("loading libraries")
        from instruct_ray.data.prepare.source_changes import list_run_sources  # noqa: PLC0415  (takes seconds)
        from instruct_ray.inference.offline.generate import generate  # noqa: PLC0415

        status("checking the model and the input")
        not_read = list_run_sources(config).describe_passed_over()
        manifest, already_done = generate(config, _model_dir(config, model), output, status, ray_session.init_ray)
    if not_read:
        print(f"not read: {not_read}")
    assert manifest.counts is not None, "all rows are answered"
    print(f"{'already generated' if already_done else 'generated'}: {manifest.num_rows:,} rows")
    for reason, count in sorted(manifest.counts.items(), key=lambda item: -item[1]):
        print(f"  {count:>9,} {FINISH_REASON_TEXTS.get(reason, f'unreadable ({reason})')}")
    print(f"-> {output}/part-*.jsonl")


def _model_dir(config: Config, model: str | None) -> Path:
    """The folder of a model. A registered version is downloaded once, to the storage that all nodes see."""
    if model is None:
        model_dir = RunFolder.from_config(config).model_dir
        if not model_dir.is_dir():
            raise InputError(f"{model_dir}: no tuned model; run `instruct-ray tune` with this config or give --model")
        return model_dir
    if not model.startswith("models:"):
        if not Path(model).is_dir():
            raise InputError(f"--model: no folder {model}; give a model folder or models:/NAME@ALIAS")
        return Path(model).absolute()
    from instruct_ray.registry.model_registry import ModelRegistry  # noqa: PLC0415  (takes seconds)

    registry = ModelRegistry(require_registry_uri(config))
    return registry.fetch(registry.resolve(model), config.run.storage / "versions")
