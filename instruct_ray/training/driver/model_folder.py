"""driver: trained weights -> the model folder of a run, with tokenizer, contract and metadata."""

import shutil

from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.files import atomic_directory, atomic_write_json
from instruct_ray.run.folder import CONTRACT_FILE, MODEL_METADATA_FILE
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.export.weights import add_tokenizer_and_contract
from instruct_ray.training.validation.best_model import BEST_DIR, BEST_RESULT_FILE, clean_up, load_best_result
from instruct_ray.training.worker.spec import WorkerSpec


def assemble_model_dir(run: OpenRun, spec: WorkerSpec, mlflow_run_id: str | None) -> None:
    """Assemble the model folder from the final weights, or from the weights with the best validation result."""
    folder, base_model = run.folder, run.base_model
    clean_up(folder.validation_dir)
    best = load_best_result(folder.validation_dir) if spec.validation else None
    weights_dir = spec.weights_dir if best is None else folder.validation_dir / BEST_DIR
    with atomic_directory(folder.model_dir) as unfinished:
        shutil.copytree(weights_dir, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BEST_RESULT_FILE))
        add_tokenizer_and_contract(unfinished, base_model.folder, folder.contract_file)
        metadata = {
            "base": base_model.name,
            "base_folder": str(base_model.folder),
            "base_digest": base_model.digest,
            "base_folder_digest": base_model.folder_digest,
            "contract_digest": PromptContract.load(unfinished / CONTRACT_FILE).digest,
            "packs_digest": run.packs.manifest["digest"],
            "mlflow_run_id": mlflow_run_id,
            "step": spec.plan.num_steps if best is None else best.step,
            "validation": None if best is None else best.model_dump(exclude={"step"}),
            "form": export_format(spec.lora),
        }
        atomic_write_json(unfinished / MODEL_METADATA_FILE, metadata)
    shutil.rmtree(spec.weights_dir)
