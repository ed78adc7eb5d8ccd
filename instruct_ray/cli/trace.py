"""`instruct-ray trace`: from a version to its source files, and from a row to the versions that were trained on it."""

from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.cli.registry import RegistryPlace, check_name, open_registry
from instruct_ray.errors import InputError

if TYPE_CHECKING:
    from instruct_ray.registry.lineage import Lineage
    from instruct_ray.registry.model_registry import ModelRegistry
    from instruct_ray.registry.trace import VersionRowTraces
    from instruct_ray.tracking.registry_reader import ModelVersion

MAX_ROWS_PRINTED = 20


def run_trace(place: RegistryPlace, reference: str | None, row: str | None, rows_file: Path | None) -> None:
    """Print the way from a version to its source files; with rows, the versions that were trained on them."""
    if row is not None and rows_file is not None:
        raise InputError("give --row ID or --rows FILE, not both")
    settings = place.read()
    if row is not None or rows_file is not None:
        if reference is not None:
            check_name(reference)
        rows = [row] if row is not None else []
        rows += _read_rows(rows_file) if rows_file is not None else []
        registry = open_registry(settings.uri)
        return _print_rows(registry, registry.model_names() if reference is None else [reference], rows)
    if reference is None:
        raise InputError("give a version, NAME@ALIAS or NAME/NUMBER, or --row")
    if "@" not in reference and "/" not in reference:
        reference = f"{reference}@{settings.alias}"
    registry = open_registry(settings.uri)
    return _print_version(registry, registry.resolve(f"models:/{reference}"))


def _read_rows(path: Path) -> list[str]:
    """Read a file with one row a line.

    Raises:
        InputError: there is no such file, or it is empty.
    """
    if not path.is_file():
        raise InputError(f"--rows: no file {path}")
    rows = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not rows:
        raise InputError(f"--rows: {path} has no rows")
    return rows


def _print_version(registry: "ModelRegistry", version: "ModelVersion") -> None:
    from instruct_ray.registry.trace import read_lineage  # noqa: PLC0415  (takes seconds)

    lineage = read_lineage(registry, version)
    aliases = sorted(alias for alias, number in registry.aliases(version.name).items() if number == version.number)
    decision = registry.history(version.name).last_on(version.number)
    lines = [
        ("version", f"{version.reference} ({', '.join(aliases) or 'no alias'})"),
        ("files", f"manifest {version.manifest_digest}"),
        (
            "decision",
            "none" if decision is None else f"{decision.kind} by {decision.who}, {decision.when}: {decision.why}",
        ),
        ("run", f"{lineage.run} (MLflow run {lineage.mlflow_run_id})"),
        ("code", f"instruct_ray {lineage.instruct_ray_version}, commit {lineage.git_commit or 'not recorded'}"),
        ("base", f"{lineage.base} (sha256 {lineage.base_digest}), {lineage.form}"),
        ("contract", lineage.contract_digest),
        *_packs_lines(lineage),
        ("config", "lineage.json of the version, key `config`"),
        ("serves", _serves(version.name, aliases)),
    ]
    for key, value in lines:
        print(f"{key:<9} {value}")


def _packs_lines(lineage: "Lineage") -> list[tuple[str, str]]:
    if lineage.packs is None:
        return [("packs", "not recorded: they were removed before the version was registered")]
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in lineage.packs.outcomes.items() if count)
    sources = [
        ("source", f"{number}: {source.name} (sha256 {source.sha256})")
        for number, source in enumerate(lineage.packs.sources)
    ]
    return [("packs", lineage.packs.digest), ("rows", f"{lineage.packs.num_read:,} read: {counts}"), *sources]


def _serves(name: str, aliases: list[str]) -> str:
    """Where a version serves. Endpoints are not recorded; those that were started on an alias serve its version."""
    if not aliases:
        return "nowhere by alias"
    references = ", ".join(f"{name}@{alias}" for alias in aliases)
    return f"endpoints of {references}; their /health names the version that they serve"


def _print_rows(registry: "ModelRegistry", names: list[str], rows: list[str]) -> None:
    from instruct_ray.registry.trace import trace_rows  # noqa: PLC0415  (takes seconds)

    aliases = {name: registry.aliases(name) for name in names}
    traces = trace_rows(registry, names, rows)
    for trace in traces:
        version = trace.version
        own = [f"@{alias}" for alias, number in sorted(aliases[version.name].items()) if number == version.number]
        print(" ".join([version.reference, *own]))
        for line in _row_lines(trace):
            print(f"  {line}")
    affected = [trace.version.reference for trace in traces if trace.is_affected]
    num_unknown = sum(trace.problem is not None for trace in traces)
    unknown = f"; {num_unknown} can't be traced" if num_unknown else ""
    print(f"{len(affected)} of {len(traces)} version(s) may have been trained on them{unknown}")
    for reference in affected:
        print(f"  {reference}")


def _row_lines(trace: "VersionRowTraces") -> list[str]:
    if trace.problem is not None:
        lines = [f"can't be traced: {trace.problem}"]
    else:
        lines = [
            f"{one.row_id} of {one.file}: trained on, {one.copies} time(s) per epoch" if one.is_trained
            else f"{one.row_id} of {one.file}: duplicate; an equal row was kept, which may be trained on"
            for one in trace.rows
            if one.may_be_trained
        ]  # fmt: skip
        num_others = len(trace.rows) - len(lines)
        if len(lines) > MAX_ROWS_PRINTED:
            lines = [*lines[:MAX_ROWS_PRINTED], f"and {len(lines) - MAX_ROWS_PRINTED} more"]
        outcomes = sorted({one.outcome for one in trace.rows if not one.may_be_trained})
        if num_others:
            lines.append(f"{num_others} row(s) not trained on: {', '.join(outcomes)}")
        if not trace.rows:
            lines.append("its sources have no such file")
    return lines if trace.through is None else [*lines, f"trained on through its base {trace.through}"]
