"""The register stage, from evidence to version.

python -m jobs.register --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("register")
