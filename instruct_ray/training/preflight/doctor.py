"""Config -> what would come of training with it, on the cluster that is there, before anything is trained."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instruct_ray import base, run
from instruct_ray.config import Config, TrainConfig
from instruct_ray.data import prepare
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.errors import InputError
from instruct_ray.training.job import PACKING_PROOF, check_base, check_contract, plan_of
from instruct_ray.training.modeling.model import check_trainable
from instruct_ray.training.modeling.proof import PackingProof, decide
from instruct_ray.training.preflight.checks import check
from instruct_ray.training.preflight.placement import bundle_of
from instruct_ray.training.preflight.report import Finding, Job
from instruct_ray.training.preflight.shaping import Shaper
from instruct_ray.training.rehearsal import time_steps
from instruct_ray.training.trainer import SECTIONS
from instruct_ray.worker_env import compute_env

STYLES = {"fine": "green", "note": "yellow", "refused": "red"}


def examine(
    config: Config, status: Callable[[str], None], start_ray: Callable[[], None], *, is_timed: bool
) -> list[Finding]:
    """Everything that `tune` checks and decides before its first step, with figures; where that is asked for, also how
    long it would take, from a few steps of a short copy.

    Raises:
        InputError: the base can't be trained at all, or the run was begun with another config.
    """
    folder = run.RunFolder.of(config)
    status("reading the base and the packs")
    run.check_pinned(config, *SECTIONS)
    model = base.resolve(config)
    architecture, obstacle = check_trainable(model.folder), check_base(config, model)
    dataset = _prepared(config)
    if dataset is None:
        shaper = Shaper.at_most(architecture, config.data.pack_tokens, config.train)
    else:
        check_contract(config, dataset, model)
        shaper = Shaper.of(architecture, obstacle, dataset, config.train)
    start_ray()
    status("looking at the cluster")
    findings = check(Job(folder.path, config.model.lora, config.train, shaper))
    if dataset is None:
        said = "not prepared yet, so memory is that of packs full of trained tokens; python -m jobs.prepare tells more"
        return [*findings, Finding("packs", "note", said), *_untimed("no packs yet", is_timed=is_timed)]
    findings += _steps(config, dataset)
    if any(finding.subject == "placement" and finding.verdict != "fine" for finding in findings):
        said, reason = "not made: there is no room for a worker now", "no room for a worker"
        return [*findings, Finding("packing proof", "note", said), *_untimed(reason, is_timed=is_timed)]
    status("proving that packs change nothing")
    findings.append(_proof(model.folder, dataset.path, obstacle, folder.path / PACKING_PROOF, config.train))
    if any(finding.verdict == "refused" for finding in findings):
        return [*findings, *_untimed("it would be refused", is_timed=is_timed)]
    return [*findings, _pace(config, status)] if is_timed else findings


def draw(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        style = STYLES[finding.verdict]
        table.add_row(finding.subject, Text(finding.verdict, style), Text(finding.said))
    console.print(table)


def _prepared(config: Config) -> PackedDataset | None:
    try:
        return prepare.find(config)
    except InputError:
        return None


def _steps(config: Config, dataset: PackedDataset) -> Iterator[Finding]:
    plan, manifest, train = plan_of(config, dataset), dataset.manifest, config.train
    trained = f"{manifest['num_trained_tokens']:,} trained tokens"
    yield Finding("packs", "fine", f"{dataset.num_train:,} examples, {trained} in {dataset.num_packs:,} packs")
    said = (
        f"{plan.num_steps:,} of {plan.packs_per_step} pack(s), {plan.packs_per_rank(train.max_workers)} a worker; "
        "how long they take: instruct-ray doctor --timed, or the run itself once it has timed some"
    )
    idle = train.max_workers - plan.packs_per_step
    if idle > 0:
        yield Finding("steps", "note", f"{said}. {idle} worker(s) get none: raise train.examples_per_step")
    else:
        yield Finding("steps", "fine", said)


def _untimed(reason: str, *, is_timed: bool) -> list[Finding]:
    """What was asked for and not done is said."""
    return [Finding("time", "note", f"not timed: {reason}")] if is_timed else []


def _pace(config: Config, status: Callable[[str], None]) -> Finding:
    try:
        pace = time_steps(config, status)
    except RuntimeError as error:
        return Finding("time", "refused", f"a short copy of the run failed: {str(error).strip().splitlines()[-1]}")
    expected = timedelta(seconds=round(pace.expected))
    each = f"{pace.seconds:.3g} s a step, the median of {pace.num_timed}"
    return Finding("time", "fine", f"{expected} for all {pace.num_steps:,} steps ({each}), checkpoints not counted")


def _proof(folder: Path, packs: Path, obstacle: str | None, record: Path, train: TrainConfig) -> Finding:
    """Where a worker would make it; tune finds it made."""
    bundle = bundle_of(train)
    prove = _prove.options(
        num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), runtime_env=compute_env(use_gpu=train.use_gpu)
    )
    try:
        proof: PackingProof = ray.get(prove.remote(folder, packs, obstacle, record, train.use_gpu))
    except RayTaskError as error:
        return Finding("packing proof", "refused", f"failed: {str(error).strip().splitlines()[-1]}")
    if proof.is_packed:
        return Finding("packing proof", "fine", f"{proof.reason} ({record})")
    return Finding("packing proof", "note", f"trained padded instead: {proof.reason} ({record})")


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _prove(folder: Path, packs: Path, obstacle: str | None, record: Path, use_gpu: bool) -> PackingProof:
    device = torch.device("cuda" if use_gpu else "cpu")
    return decide(folder, PackedDataset.open(packs), obstacle, record, device)
