"""The evaluate stage, from model to evidence.

python -m jobs.evaluate --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("evaluate")
