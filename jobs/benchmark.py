"""What tuning cost in general skill: standard benchmarks of base and tuned model.

python -m jobs.benchmark --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("benchmark")
