"""`instruct-ray tune`: the tune stage, from packs to model."""

from functools import partial

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine


def run_tune(config: Config) -> None:
    """Train and export the model of a run."""
    with StatusLine("tune") as status:
        status("loading libraries")
        from instruct_ray.evidence.checkpoint_eval import make_eval_fn  # noqa: PLC0415  (takes seconds)
        from instruct_ray.training.driver.tune import tune  # noqa: PLC0415

        start_ray = partial(ray_session.init_ray_for_training, config.train)
        result = tune(config, status, start_ray, make_eval_fn(config))
    print(f"{'already tuned' if result.already_done else 'tuned'} -> {result.folder}")
