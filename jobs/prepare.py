"""triples -> packs.    python -m jobs.prepare --config jobs/configs/incidents.yaml"""

from instruct_ray.config import Config
from instruct_ray.console import Status
from jobs import runner


def main(config: Config) -> None:
    """Prepare the packs of a run."""
    with Status("prepare") as status:
        status("loading libraries")
        from instruct_ray.data.inspection.report import FATES, REPORT  # noqa: PLC0415  (the same)
        from instruct_ray.data.prepare import prepare  # noqa: PLC0415  (seconds: here it is not silent)

        status(f"reading {len(config.data.sources)} source(s)")
        prepared = prepare(config, runner.connect_for_data)
    m = prepared.dataset.manifest
    verb = "already prepared" if prepared.already_done else "prepared"
    print(f"{verb}: {m['num_train']:,} rows to train on in {m['num_packs']:,} packs, {m['num_test']:,} held out")
    fates = ", ".join(f"{count:,} {FATES[fate][0]}" for fate, count in m["fates"].items() if count)
    print(f"{m['num_read']:,} rows read: {fates}")
    print(
        f"{m['num_tokens']:,} tokens in the rows -> {m['num_computed_tokens']:,} to compute "
        f"({m['num_computed_tokens'] / m['num_tokens']:.1%}), {m['num_trained_tokens']:,} trained"
    )
    print(f"packs: {prepared.dataset.path}")
    print(f"report: {prepared.dataset.path / REPORT}")


if __name__ == "__main__":
    runner.run(main, __doc__)
