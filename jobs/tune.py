"""packs -> model.    python -m jobs.tune --config jobs/configs/incidents.yaml"""

from functools import partial

from instruct_ray.config import Config
from instruct_ray.console import Status
from jobs import runner


def main(config: Config) -> None:
    """Train and export the model of a run."""
    with Status("tune") as status:
        status("loading libraries")
        from instruct_ray.evidence.validation import scorer  # noqa: PLC0415  (seconds: here it is not silent)
        from instruct_ray.training.trainer import tune  # noqa: PLC0415  (the same)

        tuned = tune(config, status, partial(runner.connect_for_training, config.train), scorer(config))
    print(f"{'already tuned' if tuned.already_done else 'tuned'} -> {tuned.folder}")


if __name__ == "__main__":
    runner.run(main, __doc__)
