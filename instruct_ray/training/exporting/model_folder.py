"""Trained weights -> the model folder of a run: with tokenizer, contract, and a record of where it comes from."""

import shutil

from instruct_ray import run
from instruct_ray.base import Base
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.rendering.contract import Contract
from instruct_ray.training.exporting.export import complete_model, form_of
from instruct_ray.training.job import TrainJob
from instruct_ray.training.watching.validation import BEST, BEST_SCORES, best_scores


def assemble_model(folder: run.RunFolder, job: TrainJob, model: Base, run_id: str | None) -> None:
    """Put the model in place at once: the trained weights, or those that validation found to be the best."""
    best = best_scores(folder.scores) if job.validation else None
    source = job.weights if best is None else folder.scores / BEST
    with run.complete_folder(folder.model) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BEST_SCORES))
        complete_model(unfinished, model.folder, folder.contract)
        record = {
            "base": model.name,
            "base_folder": str(model.folder),
            "base_digest": model.digest,
            "base_folder_digest": model.folder_digest,
            "contract_digest": Contract.load(unfinished / "contract.json").digest,
            "packs_digest": PackedDataset.open(job.packs).manifest["digest"],
            "mlflow_run_id": run_id,
            "step": job.plan.num_steps if best is None else best.step,
            "validation": None if best is None else best.model_dump(exclude={"step"}),
            "form": form_of(job.lora),
        }
        run.write_json(unfinished / run.MODEL_RECORD, record)
    shutil.rmtree(job.weights)
