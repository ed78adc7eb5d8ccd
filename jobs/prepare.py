"""The prepare stage, from triples to packs.

python -m jobs.prepare --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("prepare")
