"""Offline answers: a file of rows -> a folder.    python -m jobs.generate --config F --input rows.jsonl --output out"""

from instruct_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("generate")
