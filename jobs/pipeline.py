"""All stages from triples to a registered version, as one job: prepare, tune, evaluate, register.

python -m jobs.pipeline --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("pipeline")
