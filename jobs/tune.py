"""The tune stage, from packs to model.

python -m jobs.tune --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("tune")
