"""The serve stage, from version to endpoint.

python -m jobs.serve --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("serve")
