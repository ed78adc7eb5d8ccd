"""`instruct-ray prepare`: the prepare stage, from triples to packs."""

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine


def run_prepare(config: Config) -> None:
    """Prepare the packs of a run and print the outcomes of the rows."""
    with StatusLine("prepare") as status:
        status("loading libraries")
        from instruct_ray.data.prepare.pipeline import prepare  # noqa: PLC0415  (takes seconds)
        from instruct_ray.data.report.report import OUTCOME_TEXTS, REPORT_FILE  # noqa: PLC0415

        status(f"reading {len(config.data.sources)} source(s)")
        result = prepare(config, ray_session.init_ray_for_tasks)
    if result.not_read:
        print(f"not read: {result.not_read}")
    manifest, path = result.dataset.manifest, result.dataset.path
    print(
        f"{'already prepared' if result.already_done else 'prepared'}: {manifest['num_train']:,} rows to train on in "
        f"{manifest['num_packs']:,} packs, {manifest['num_test']:,} held out"
    )
    outcomes = [f"{count:,} {OUTCOME_TEXTS[outcome][0]}" for outcome, count in manifest["fates"].items() if count]
    print(f"{manifest['num_read']:,} rows read: {', '.join(outcomes)}")
    computed_fraction = manifest["num_computed_tokens"] / manifest["num_tokens"]
    print(
        f"{manifest['num_tokens']:,} tokens in the rows -> {manifest['num_computed_tokens']:,} to compute "
        f"({computed_fraction:.1%}), {manifest['num_trained_tokens']:,} target tokens"
    )
    print(f"packs: {path}")
    print(f"report: {path / REPORT_FILE}")
