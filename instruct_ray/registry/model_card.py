"""The model card of a version: its README.md. The same inputs give the same text."""

from collections.abc import Mapping
from typing import Any

from instruct_ray.evidence.benchmarks.file import BenchmarksFile
from instruct_ray.registry.gate_evidence import read_gate_evidence
from instruct_ray.registry.lineage import Lineage, PacksLineage

CARD_FILE = "README.md"
# Of the description of a version in MLflow's database.
MAX_DESCRIPTION = 5000
MAX_SOURCES = 20


def build_card(
    name: str, lineage: Lineage, evidence: Mapping[str, Any], benchmarks: BenchmarksFile | None, base_license: str
) -> str:
    """Build the card of a version of the registered model `name`."""
    sections = [
        f"# {name}: run {lineage.run}",
        describe_version(lineage, evidence),
        _evidence_section(evidence),
        *([] if benchmarks is None else [_skill_section(benchmarks)]),
        _data_section(lineage.packs),
        _base_section(lineage, base_license),
        _use_section(lineage),
        _limits_section(evidence, has_benchmarks=benchmarks is not None),
        _origin_section(lineage),
    ]
    return "\n\n".join(sections) + "\n"


def describe_for_browsing(lineage: Lineage, evidence: Mapping[str, Any]) -> str:
    """The description of a version on its page: what it is in one line, the evidence as a table, and the data."""
    line = describe_version(lineage, evidence)
    files = f"Its files, with the card (`{CARD_FILE}`), are on the page of its source model, under *Artifacts*."
    table = _space_columns(_evidence_section(evidence))
    for sections in ([table, _data_section(lineage.packs)], [table], []):
        text = "\n\n".join([line, *sections, files])
        if len(text) <= MAX_DESCRIPTION:
            return text
    return line[:MAX_DESCRIPTION]


def _space_columns(section: str) -> str:
    """A section whose table can be read on MLflow's pages, which leave no space between columns."""
    lines = section.splitlines()
    return "\n".join(line.replace(" | ", "&nbsp;&nbsp; | ") if line.startswith("| ") else line for line in lines)


def describe_model(name: str, alias: str) -> str:
    """The description of a registered model on its page."""
    return (
        f"Tuned by instruct_ray.\n\n* **{alias}** is the version that endpoints follow, `previous` the one that a "
        "rollback returns to, `candidate` one that was not accepted (yet).\n"
        f"* Each move has a record: `instruct-ray versions {name}` shows who, when and why. `promote` and `rollback` "
        "make one; an alias that is moved on this page has none."
    )


def describe_version(lineage: Lineage, evidence: Mapping[str, Any]) -> str:
    """One line that tells versions apart in a list, with what differs first."""
    origin = f"{lineage.base} tuned by run {lineage.run} ({lineage.form})"
    values = read_gate_evidence(evidence)
    if values.tuned_arm not in values.accuracies:
        return f"{origin}; no evidence."
    text = f"Accuracy {values.accuracies[values.tuned_arm]:.3f}"
    if arms := values.prompting_arms:
        text += f", best prompting arm {arms[0]} {values.accuracies[arms[0]]:.3f}"
    rows = f" on {values.num_test} test rows" if values.num_test is not None else ""
    return f"{text}{rows}; {origin}."


def _evidence_section(evidence: Mapping[str, Any]) -> str:
    values = read_gate_evidence(evidence)
    own, confidence = values.tuned_arm, evidence.get("verdict", {}).get("confidence", 0.95)
    lines = ["## Evidence", ""]
    if "verdict" in evidence:
        lines += [evidence["verdict"]["sentence"], ""]
    head = f"| arm | accuracy, 95 % interval | prompt tokens | {own} − arm, {100 * confidence:g} % interval |"
    lines += [head, "|:--|:--|:--|:--|"]
    for arm, metrics in evidence["arms"].items():
        accuracy = f"{metrics['accuracy']:.3f}"
        if metrics.get("accuracy_lower") is not None:
            accuracy += f" [{metrics['accuracy_lower']:.3f}, {metrics['accuracy_upper']:.3f}]"
        difference = values.comparisons.get(f"{own} - {arm}")
        interval = (
            "–" if difference is None
            else f"{difference.estimate:+.3f} [{difference.lower:+.3f}, {difference.upper:+.3f}]"
        )  # fmt: skip
        tokens = "–" if metrics.get("prompt_tokens") is None else f"{metrics['prompt_tokens']:.0f}"
        name = f"**{arm}**" if arm == own else arm
        lines.append(f"| {name} | {accuracy} | {tokens} | {interval} |")
    if values.num_test is not None:
        lines += ["", f"Measured on {values.num_test} test rows that were never trained on (exact match)."]
    return "\n".join(lines)


def _skill_section(benchmarks: BenchmarksFile) -> str:
    lines = ["## General skill", "", "| benchmark | base | tuned | tuned − base, 95 % interval | questions |"]
    lines.append("|---|---|---|---|---|")
    for name, one in benchmarks.benchmarks.items():
        change = one.comparison
        interval = "" if change.lower is None else f" [{change.lower:+.3f}, {change.upper:+.3f}]"
        lines.append(
            f"| {name} | {one.base:.3f} | {one.tuned:.3f} | {change.estimate:+.3f}{interval} | {one.num_questions} |"
        )
    lines += ["", f"Measured by lm-eval {benchmarks.settings['lm_eval']} on the same questions, without chat template."]
    lines += [f"* {name}: {one.problem}." for name, one in benchmarks.benchmarks.items() if one.problem is not None]
    return "\n".join(lines)


def _data_section(packs: PacksLineage | None) -> str:
    if packs is None:
        return "## Data\n\nNot recorded: the run's packs were removed before it was registered."
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in packs.outcomes.items() if count)
    lines = ["## Data", "", f"{packs.num_read:,} rows read: {counts}.", ""]
    lines += [f"* `{source.name}` (sha256 `{source.sha256[:12]}`)" for source in packs.sources[:MAX_SOURCES]]
    if len(packs.sources) > MAX_SOURCES:
        lines.append(f"* and {len(packs.sources) - MAX_SOURCES} more, all in `lineage.json`")
    return "\n".join(lines)


def _base_section(lineage: Lineage, base_license: str) -> str:
    return (
        f"## Base model\n\n`{lineage.base}` (sha256 `{lineage.base_digest[:12]}`). Licence: {base_license}. "
        "It applies to this model too."
    )


def _use_section(lineage: Lineage) -> str:
    prompt = lineage.config.get("data", {}).get("system_prompt")
    system = f", with the system prompt “{prompt}”" if prompt else ""
    return (
        "## Intended use\n\n"
        f"Requests like the rows that it was trained on{system}. Prompts are rendered by `contract.json`, as in "
        "training; `instruct-ray serve` and `instruct-ray generate` do so."
    )


def _limits_section(evidence: Mapping[str, Any], *, has_benchmarks: bool) -> str:
    lines = [
        "## Limits",
        "",
        "* The evidence speaks of rows like the test rows; other requests were not measured.",
        "* The intervals cover the choice of test rows, not the seed of training.",
    ]
    if not has_benchmarks:
        lines.append("* What tuning cost in general skill was not measured.")
    return "\n".join([*lines, *(f"* {note}" for note in evidence.get("notes", ()))])


def _origin_section(lineage: Lineage) -> str:
    packs = "not recorded" if lineage.packs is None else f"`{lineage.packs.digest[:12]}`"
    commit = lineage.git_commit or "not recorded"
    return (
        "## Origin\n\n"
        f"MLflow run `{lineage.mlflow_run_id}`, packs {packs}, contract `{lineage.contract_digest[:12]}`, instruct_ray "
        f"{lineage.instruct_ray_version} (commit {commit}). `lineage.json` has the full digests and the config, "
        "`rows.parquet` the outcome of every input row."
    )
