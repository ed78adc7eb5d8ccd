"""`instruct-ray pipeline`: the stages from triples to a registered version, in one process and one job."""

from instruct_ray.cli import ray_session
from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config

STAGES = (("prepare", run_prepare), ("tune", run_tune), ("evaluate", run_evaluate), ("register", run_register))


def run_pipeline(config: Config) -> None:
    """Run the stages one after the other; those that are finished do nothing. Ends as the first stage that fails."""
    for number, (name, stage) in enumerate(STAGES, start=1):
        print(f"── {number}/{len(STAGES)} {name}", flush=True)
        stage(config)
        # Nothing that this stage has requested of the cluster, GPUs above all, is held during the next one.
        ray_session.shut_down_ray()
