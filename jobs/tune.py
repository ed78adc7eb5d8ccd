"""packs -> model.    python -m jobs.tune --config jobs/configs/incidents.yaml"""

from instruct_ray.config import Config
from instruct_ray.console import Status
from jobs import runner


def main(config: Config) -> None:
    """Train and export the model of a run."""
    with Status("tune") as status:
        status("loading libraries")
        from instruct_ray.training.trainer import tune  # noqa: PLC0415  (seconds: here it is not silent)

        status(f"starting {config.train.num_workers} worker(s), ZeRO-{config.train.zero_stage}")
        tuned = tune(config, status, runner.connect)
    print(f"{'already tuned' if tuned.already_done else 'tuned'} -> {tuned.folder}")


if __name__ == "__main__":
    runner.run(main, __doc__)
