"""One run of a peer's trainer in the peers' environment: reads a job file, trains on its rows, writes the measurements.

Run by `bench_train`. It imports nothing of instruct_ray, which is not installed in that environment.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# DeepSpeed needs a process group, here of one rank.
SINGLE_RANK_ENV = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29555",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}


class Clock(TrainerCallback):
    """Records seconds and loss of every optimizer step; a step starts when the previous one ends."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._step_start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._step_start)
        self._step_start = now

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class CountingTrainer(Trainer):
    """Counts (row tokens, computed tokens, target tokens) of each micro-batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counts: list[tuple[int, int, int]] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        num_computed = inputs["input_ids"].numel()
        num_target = int((inputs["labels"] != -100).sum())
        self.counts.append((num_computed if mask is None else int(mask.sum()), num_computed, num_target))
        return super().training_step(model, inputs, *args, **kwargs)


class CountingTrlTrainer(CountingTrainer, SFTTrainer):
    """The same for TRL's trainer."""


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train on the job's rows; returns seconds, losses and token counts."""
    torch.set_num_threads(job["threads"])
    clock = Clock()
    options = {
        "output_dir": job["folder"],
        "use_cpu": not job["use_gpu"],
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "num_train_epochs": 1,
        "learning_rate": job["learning_rate"],
        "gradient_accumulation_steps": job["accumulation"],
        **job["settings"],
    }
    make_trainer = make_trl_trainer if job["trainer"] == "trl" else make_deepspeed_trainer
    trainer = make_trainer(job, options, clock)
    trainer.train()
    return {"seconds": clock.seconds, "losses": clock.losses, "counts": trainer.counts}


def make_trl_trainer(job: dict[str, Any], options: dict[str, Any], clock: Clock) -> CountingTrlTrainer:
    """Make TRL's trainer for the job's rows."""
    dtype = DTYPES[options.pop("dtype")] if "dtype" in options else None
    config = SFTConfig(model_init_kwargs=None if dtype is None else {"dtype": dtype}, **options)
    return CountingTrlTrainer(
        model=job["base"],
        args=config,
        train_dataset=datasets.Dataset.from_list(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        callbacks=[clock],
    )


def make_deepspeed_trainer(job: dict[str, Any], options: dict[str, Any], clock: Clock) -> CountingTrainer:
    """Make the Trainer of transformers with a DeepSpeed engine and torch's AdamW, as on our side."""
    os.environ.update(SINGLE_RANK_ENV | ({} if job["use_gpu"] else {"DS_ACCELERATOR": "cpu"}))
    deepspeed = {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": options.pop("zero_stage")},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }
    return make_plain_trainer(
        job, TrainingArguments(bf16=True, deepspeed=deepspeed, **options), torch.bfloat16, [clock]
    )


def make_plain_trainer(
    job: dict[str, Any], arguments: TrainingArguments, dtype: torch.dtype, callbacks: list[TrainerCallback]
) -> CountingTrainer:
    """Make the Trainer of transformers for the job's rows, padded by its own collator."""
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in job["rows"]]
    return CountingTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job["base"])),
        callbacks=callbacks,
    )


def compute_first_loss(job: dict[str, Any]) -> dict[str, Any]:
    """Compute the trainer's fp32 loss on the job's rows as one batch, with the collator's token ids and labels."""
    torch.set_num_threads(job["threads"])
    options = {"output_dir": job["folder"], "use_cpu": True, "report_to": "none", "bf16": False}
    if job["trainer"] == "trl":
        trainer: Trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32),
            args=SFTConfig(max_length=None, **options),
            train_dataset=datasets.Dataset.from_list(job["rows"]),
            processing_class=AutoTokenizer.from_pretrained(job["base"]),
        )
    else:
        trainer = make_plain_trainer(job, TrainingArguments(**options), torch.float32, [])
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(job["rows"]))])
    ids, labels, mask = (batch[name] for name in ("input_ids", "labels", "attention_mask"))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
    lengths = mask.sum(dim=1).tolist()
    return {
        "loss": float(loss),
        "input_ids": [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)],
        "labels": [row[:length].tolist() for row, length in zip(labels, lengths, strict=True)],
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    result = compute_first_loss(request) if request["kind"] == "loss" else train(request)
    Path(sys.argv[2]).write_text(json.dumps(result))
