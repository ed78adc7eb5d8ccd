"""The two sides of the prepare benchmark, each in its own process: `prepare`, and a plain `datasets.map`.

python -m tests.bench.prepare_sides ours|datasets JOB.json RESULT.json
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Time until Ray is idle after its start.
SETTLE_SECONDS = 3


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    """Run all of `prepare`: reading, checks, ledger, split, rendering, tokenizing, packing, Parquet."""
    from instruct_ray.cli import ray_session  # noqa: PLC0415
    from instruct_ray.config.schema import Config  # noqa: PLC0415  (each side imports only its own)
    from instruct_ray.data.prepare.pipeline import prepare  # noqa: PLC0415

    ray_session.silence_libraries()
    ray_session.init_ray_for_tasks()
    time.sleep(SETTLE_SECONDS)
    idle_at, start = time.time(), time.perf_counter()
    prepared = prepare(Config.model_validate(job["config"]), lambda: None)
    seconds = time.perf_counter() - start
    finished_at = time.time()
    ray_session.shut_down_ray()
    return {"idle_at": idle_at, "finished_at": finished_at, "seconds": seconds, "manifest": prepared.dataset.manifest}


def run_datasets(job: dict[str, Any]) -> dict[str, Any]:
    """Only render and tokenize, as the documentation of `datasets` recommends; reading is not timed."""
    import datasets  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    cache = Path(job["cache"])
    shutil.rmtree(cache, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=job["source"], split="train", cache_dir=str(cache))
    seconds_reading = time.perf_counter() - start
    time.sleep(SETTLE_SECONDS)
    idle_at, start = time.time(), time.perf_counter()
    mapped = rows.map(
        tokenize,
        batched=True,
        num_proc=job["num_proc"],
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=rows.column_names,
    )
    seconds = time.perf_counter() - start
    finished_at = time.time()
    result = {"idle_at": idle_at, "finished_at": finished_at, "seconds": seconds, "seconds_reading": seconds_reading}
    return result | {"num_rows": len(mapped), "first": [mapped[index] for index in range(job["num_checked"])]}


def tokenize(batch: dict[str, Sequence[str]], tokenizer: Any) -> dict[str, Any]:
    """Tokenize the prompts and completions of a batch of rows."""
    chats = [
        [{"role": "user", "content": f"{instruction}\n\n{text}" if text else instruction}]
        for instruction, text in zip(batch["instruction"], batch["input"], strict=True)
    ]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    completions = [output + tokenizer.eos_token for output in batch["output"]]
    return {"prompt_ids": prompts, "completion_ids": tokenizer(completions, add_special_tokens=False)["input_ids"]}


if __name__ == "__main__":
    side, job_file, result_file = sys.argv[1:]
    run = {"ours": run_ours, "datasets": run_datasets}[side]
    Path(result_file).write_text(json.dumps(run(json.loads(Path(job_file).read_text()))))
