"""driver: the evaluate stage: every arm answers the held-out rows, with the engine that serves -> evidence."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.prepare.source_changes import check_sources_unchanged
from instruct_ray.errors import InputError
from instruct_ray.evidence.asking.journal import JOURNAL_FILE, Journal
from instruct_ray.evidence.asking.latency import describe_latency
from instruct_ray.evidence.asking.local import LocalAsker
from instruct_ray.evidence.limits import describe_labels, describe_limits, describe_sample
from instruct_ray.evidence.plan import Plan, make_plan
from instruct_ray.evidence.results.build import EvidenceSettings, build_evidence
from instruct_ray.evidence.results.files import write_results
from instruct_ray.inference.loading import model_digest
from instruct_ray.run.folder import CONTRACT_FILE, RunFolder
from instruct_ray.run.lock import RunLock, run_lock


@dataclass(frozen=True)
class Evidence:
    """The content of `evidence.json`."""

    values: dict[str, Any]
    already_done: bool


def load_evidence(config: Config) -> dict[str, Any]:
    """Load the evidence of a run.

    Raises:
        InputError: the run has no evidence yet.
    """
    path = RunFolder.from_config(config).evidence_file
    if not path.is_file():
        raise InputError(f"{path}: no evidence; run `instruct-ray evaluate` with this config first")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def evaluate(config: Config, status: Callable[[str], None], start_ray: Callable[[], None]) -> Evidence:
    """Answer the held-out rows with every arm and write `evidence.json`, `answers.jsonl` and `suspicious.jsonl`.

    Killed anywhere and called again, it asks for no answer a second time.

    Args:
        config: the config of the run.
        status: called with progress messages.
        start_ray: called once the run is known to be ready for evaluation.

    Raises:
        InputError: the run is not tuned yet, its config or its sources have changed, a prompt exceeds the model's
            context, a document, metric or rival can't be used, or another process is working on the run.
        UnavailableError: the registry of the standing champion does not respond.
    """
    run = open_run(config, "evaluate")
    folder = run.folder
    if not (folder.model_dir / CONTRACT_FILE).is_file():
        raise InputError(f"{folder.model_dir}: no tuned model; run `instruct-ray tune` with this config first")
    if folder.evidence_file.is_file():
        return Evidence(load_evidence(config), already_done=True)
    with run_lock(folder.path) as lock:
        if folder.evidence_file.is_file():
            # Written by a process that held the lock until now.
            return Evidence(load_evidence(config), already_done=True)
        check_sources_unchanged(run)
        with Journal(folder.evidence_file.with_name(JOURNAL_FILE)) as journal:
            return _evaluate(run, lock, journal, status, start_ray)


def _evaluate(
    run: OpenRun, lock: RunLock, journal: Journal, status: Callable[[str], None], start_ray: Callable[[], None]
) -> Evidence:
    config = run.config
    plan = make_plan(run, status)
    for rival in plan.rivals:
        rival.answer(journal, status)
    local = LocalAsker(plan.arms, config, journal, status)
    if not local.is_finished or any(rival.latency_key not in journal for rival in plan.rivals):
        start_ray()
        local.ask({rival.name: rival for rival in plan.rivals})
    arms = [*local.collect(), *(rival.collect(journal) for rival in plan.rivals)]
    num_cut = {arm.name: arm.num_cut for arm in arms}
    notes = [
        *describe_labels(config.evidence_labels),
        *describe_sample(len(plan.rows.rows), plan.rows.num_held_out, config.evidence.max_rows),
        *plan.notes,
        *describe_limits(plan.renderer, plan.rows.triples, num_cut, config.evidence.max_new_tokens),
        *describe_latency(journal, local.latency_keys),
    ]
    values = build_evidence(plan.rows, arms, _settings(run, plan, notes))
    values["model_digest"] = model_digest(run.folder.model_dir)
    lock.check()
    # Only now: a measure that fails may still be changed.
    run.freeze()
    write_results(run.folder.evidence_file, values, plan.rows, arms)
    journal.remove()
    return Evidence(values, already_done=False)


def _settings(run: OpenRun, plan: Plan, notes: list[str]) -> EvidenceSettings:
    config = run.config
    return EvidenceSettings(
        contract_digest=plan.renderer.contract.digest,
        max_new_tokens=config.evidence.max_new_tokens,
        margin=config.evidence.margin,
        scorer=plan.scorer,
        trained_tokens=run.packs.manifest["num_computed_tokens"] * config.train.epochs,
        notes=notes,
        champion_version=plan.champion_version,
    )
