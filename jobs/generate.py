"""The generate stage, from a file of rows to a folder of answers.

python -m jobs.generate --config jobs/configs/incidents.yaml --input rows.jsonl --output answers
"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("generate")
