"""What more training rows would bring: tunes on parts of those of an evaluated run.

python -m jobs.learning_curve --config jobs/configs/incidents.yaml
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("learning-curve")
