"""driver: checks a run on the connected cluster before it is trained, and reports the findings."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.packs.dataset import PackedDataset, finished_pack_dirs
from instruct_ray.doctor.trial_run import time_steps
from instruct_ray.errors import last_line
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.training.capacity.checks import check_capacity
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.capacity.placement import worker_resources
from instruct_ray.training.driver.build_spec import (
    build_plan,
    check_base_trainable,
    check_contract,
    packing_incompatibility,
)
from instruct_ray.training.driver.trained_tokens import resolve_trained_tokens
from instruct_ray.training.model.packing_check import PackingCheck, load_or_run_packing_check
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def run_checks(
    config: Config, status: Callable[[str], None], start_ray: Callable[[], None], *, is_timed: bool
) -> list[Finding]:
    """Run every check that `tune` runs before its first step; with `is_timed` also time a few steps of a trial run.

    Raises:
        InputError: the base model can't be trained, or the config changed since the run started.
    """
    run = open_run(config, "tune")
    status("reading the base model and the packs")
    check_base_trainable(run)
    incompatibility = packing_incompatibility(run.hf_config, config)
    token_ids = resolve_trained_tokens(run)
    is_prepared = bool(finished_pack_dirs(run.folder))
    if is_prepared:
        check_contract(run)
        sizer = ModelSizer.from_packs(run.hf_config, incompatibility, run.packs, config.train, token_ids)
    else:
        sizer = ModelSizer.upper_bound(run.hf_config, incompatibility, config.data.pack_tokens, config.train, token_ids)
    start_ray()
    status("checking the cluster")
    findings = [
        *_check_tokens(run, token_ids),
        *check_capacity(CheckInput(run.folder.path, config.model.lora, config.train, sizer)),
    ]
    if not is_prepared:
        message = "not prepared yet, so memory is estimated for packs full of target tokens; run `instruct-ray prepare`"
        return [*findings, Finding("packs", "warning", message), *_not_timed("no packs yet", is_timed=is_timed)]
    findings += _check_steps(config, run.packs)
    if any(finding.check == "placement" and finding.verdict != "ok" for finding in findings):
        message, reason = "not run: no free resources for a worker", "no free resources for a worker"
        return [*findings, Finding("packing check", "warning", message), *_not_timed(reason, is_timed=is_timed)]
    status("checking that packing is exact")
    findings.append(_check_packing(run, incompatibility))
    if any(finding.verdict == "error" for finding in findings):
        return [*findings, *_not_timed("a check failed", is_timed=is_timed)]
    return [*findings, _time_steps(run, status)] if is_timed else findings


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row(finding.check, Text(finding.verdict, STYLES[finding.verdict]), Text(finding.message))
    console.print(table)


def _check_tokens(run: OpenRun, token_ids: tuple[int, ...]) -> Iterator[Finding]:
    if notice := run.describe_untrained_tokens():
        yield Finding("tokens", "ok" if set(run.untrained_tokens) <= set(token_ids) else "warning", notice)


def _check_steps(config: Config, packs: PackedDataset) -> Iterator[Finding]:
    plan, train = build_plan(config, packs), config.train
    num_target_tokens = packs.manifest["num_trained_tokens"]
    yield Finding(
        "packs",
        "ok",
        f"{packs.num_examples:,} examples with {num_target_tokens:,} target tokens in {packs.num_packs:,} packs",
    )
    message = (
        f"{plan.num_steps:,} steps of {plan.packs_per_step} pack(s), {plan.packs_per_rank(train.max_workers)} per "
        "worker; `instruct-ray doctor --timed` estimates how long they take"
    )
    num_idle = train.max_workers - plan.packs_per_step
    if num_idle > 0:
        yield Finding("steps", "warning", f"{message}. {num_idle} worker(s) get no pack: raise train.examples_per_step")
    else:
        yield Finding("steps", "ok", message)


def _not_timed(reason: str, *, is_timed: bool) -> list[Finding]:
    return [Finding("time", "warning", f"not timed: {reason}")] if is_timed else []


def _time_steps(run: OpenRun, status: Callable[[str], None]) -> Finding:
    try:
        timing = time_steps(run, status)
    except RuntimeError as error:
        return Finding("time", "error", f"a trial run failed: {last_line(error)}")
    total = timedelta(seconds=round(timing.total_seconds))
    per_step = f"{timing.step_seconds:.3g} s per step, the median of {timing.num_timed_steps}"
    return Finding("time", "ok", f"{total} for all {timing.num_steps:,} steps ({per_step}), checkpoints not counted")


def _check_packing(run: OpenRun, incompatibility: str | None) -> Finding:
    """Run the packing check with a worker's resources; `tune` reuses its result."""
    train, check_file = run.config.train, run.folder.path / PACKING_CHECK_FILE
    resources = worker_resources(train)
    task: Any = _packing_check_task.options(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        label_selector=train.label_selector,
        runtime_env=worker_runtime_env(use_gpu=train.use_gpu),
    )
    try:
        check: PackingCheck = ray.get(
            task.remote(run.base_model.folder, run.packs.path, incompatibility, check_file, train.use_gpu)
        )
    except RayTaskError as error:
        return Finding("packing check", "error", f"failed: {last_line(error)}")
    if check.is_packed:
        return Finding("packing check", "ok", f"{check.reason} ({check_file})")
    return Finding("packing check", "warning", f"training will use padding instead: {check.reason} ({check_file})")


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _packing_check_task(
    base_dir: Path, packs_dir: Path, incompatibility: str | None, check_file: Path, use_gpu: bool
) -> PackingCheck:
    device = torch.device("cuda" if use_gpu else "cpu")
    packs = PackedDataset.open(packs_dir)
    return load_or_run_packing_check(base_dir, load_hf_config(base_dir), packs, incompatibility, check_file, device)
