"""One TRL run, in TRL's own environment: reads a job file, trains the given rows, writes what it measured.

Nothing of this project is imported: the same interpreter has no instruct_ray. Run by `bench_train`, not by hand.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Clock(TrainerCallback):
    """Seconds and loss of every optimizer step; a step begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class CountingTrainer(SFTTrainer):
    """TRL's trainer, counting the tokens of the rows (`real`) and those computed, per micro-batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counts: list[tuple[int, int, int]] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        computed = inputs["input_ids"].numel()
        trained = int((inputs["labels"] != -100).sum())
        self.counts.append((computed if mask is None else int(mask.sum()), computed, trained))
        return super().training_step(model, inputs, *args, **kwargs)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train the job's rows; returns seconds, losses and token counts."""
    torch.set_num_threads(job["threads"])
    rows = datasets.Dataset.from_list(job["rows"])
    options = dict(job["settings"])
    dtype = DTYPES[options.pop("dtype")] if "dtype" in options else None
    config = SFTConfig(
        output_dir=job["folder"],
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        model_init_kwargs=None if dtype is None else {"dtype": dtype},
        gradient_accumulation_steps=job["accumulation"],
        **options,
    )
    clock = Clock()
    trainer = CountingTrainer(
        model=job["base"],
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        callbacks=[clock],
    )
    trainer.train()
    return {"seconds": clock.seconds, "losses": clock.losses, "counts": trainer.counts}


def first_loss(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss on the job's rows as one batch in fp32, with the token ids and labels its collator made of them."""
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    config = SFTConfig(output_dir=job["folder"], use_cpu=True, report_to="none", bf16=False, max_length=None)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
    )
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
    answer = first_loss(request) if request["kind"] == "loss" else train(request)
    Path(sys.argv[2]).write_text(json.dumps(answer))
