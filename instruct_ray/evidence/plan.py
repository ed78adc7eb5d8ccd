"""driver: what an evaluation asks: rows, arms, rivals and measures, all checked before any worker starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.base_model.hf_config import context_length, load_hf_config
from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.config.schema import RegistryConfig
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.prepare.source_changes import find_run_files
from instruct_ray.data.prepare.split_rule import find_split_rule
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Additions, Arm, LocalModel, check_prompts_fit, make_arms, make_champion_arm
from instruct_ray.evidence.asking.journal import make_key
from instruct_ray.evidence.asking.rivals import RivalArm, make_rival_arms
from instruct_ray.evidence.evaluated_rows import EvaluatedRows, load_evaluated_rows
from instruct_ray.evidence.examples import choose_examples, load_candidates
from instruct_ray.evidence.registry_standing import Champion, Standing, find_standing
from instruct_ray.evidence.results.scores import Scorer
from instruct_ray.evidence.retrieval.passages import choose_passages
from instruct_ray.evidence.scoring.custom import Metric, load_metric
from instruct_ray.evidence.scoring.measures import choose_measures
from instruct_ray.inference.loading import check_loadable, find_adapter_base


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks."""

    rows: EvaluatedRows
    arms: list[Arm]
    """Those that engines answer."""
    rivals: list[RivalArm]
    renderer: Renderer
    """Of the tuned model."""
    scorer: Scorer
    champion_version: str | None
    notes: list[str]


def make_plan(run: OpenRun, status: Callable[[str], None]) -> Plan:
    """Make the plan of an evaluation.

    Raises:
        InputError: a prompt exceeds the model's context, or a document, metric, model or rival can't be used.
        UnavailableError: the registry of the standing champion does not respond.
    """
    evidence, folder = run.config.evidence, run.folder
    metrics = load_metrics(evidence)
    renderer = load_renderer(folder.model_dir)
    check_loadable(folder.model_dir)
    split_rule = find_split_rule(find_run_files(run.config), run.config.data)
    rows = load_evaluated_rows(folder.test_rows_file, split_rule, evidence.max_rows, run.config.run.seed)
    triples = rows.triples
    rivals = make_rival_arms(renderer, triples, evidence)
    candidates = load_candidates(run)
    passages, passage_notes = choose_passages(triples, renderer, evidence, status)
    additions = Additions(choose_examples(candidates, triples, evidence), passages)
    base = make_local_model("base", run.base_model.initial_model_dir, renderer)
    tuned = make_local_model("tuned", folder.model_dir, renderer)
    arms, notes = make_arms(base, tuned, triples, additions, evidence)
    standing = _find_standing(run, rows.digest, status)
    champion = standing.champion
    if champion is not None:
        arms.append(_make_champion_arm(champion, triples))
    check_prompts_fit(arms, triples)
    measures = choose_measures([row.output for row in triples], [row.output for row in candidates])
    notes += [*passage_notes, *_describe_decisions(run.config.registry, standing)]
    version = None if champion is None else champion.number
    return Plan(rows, arms, rivals, renderer, Scorer(measures, metrics), version, notes)


def make_local_model(name: str, folder: Path, renderer: Renderer) -> LocalModel:
    """A model folder as an arm's model; its identity is that of its files, not of their content."""
    base = find_adapter_base(folder)
    folders = [folder] if base is None else [folder, base]
    files = [file for one in folders for file in sorted(one.glob("*.safetensors"))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    context = context_length(load_hf_config(base or folder))
    return LocalModel(
        name, folder, renderer, context, make_key(renderer.contract.digest, stats), sum(size for _, size, _ in stats)
    )


def load_metrics(evidence: EvidenceConfig) -> dict[str, Metric]:
    """The user's own measure, by its name.

    Raises:
        InputError: it can't be imported.
    """
    if evidence.metric is None:
        return {}
    try:
        return {evidence.metric: load_metric(evidence.metric)}
    except ValueError as error:
        raise InputError(str(error)) from None


def _find_standing(run: OpenRun, test_digest: str, status: Callable[[str], None]) -> Standing:
    """What the registry knows; nothing if it is not to be compared with."""
    if not run.config.evidence.compare_champion:
        return Standing(None, 0)
    status("looking for the standing champion")
    return find_standing(run.config, test_digest)


def _make_champion_arm(champion: Champion, rows: Sequence[Triple]) -> Arm:
    check_loadable(champion.folder)
    model = make_local_model("champion", champion.folder, load_renderer(champion.folder))
    return make_champion_arm(model, champion.number, rows)


def _describe_decisions(registry: RegistryConfig, standing: Standing) -> list[str]:
    """How often these test rows have decided before, if they have."""
    number, gate = standing.num_decisions, registry.gate
    if not number:
        return []
    limit = "" if gate is None or gate.max_decisions is None else f" (registry.gate.max_decisions={gate.max_decisions})"
    return [f"these test rows have decided on {number} other version(s) of {registry.name}{limit}"]
