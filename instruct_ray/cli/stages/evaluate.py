"""`instruct-ray evaluate`: the evaluate stage, from model to evidence."""

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.run.folder import RunFolder


def run_evaluate(config: Config) -> None:
    """Compare the tuned model of a run with its base model."""
    with StatusLine("evaluate") as status:
        status("loading libraries")
        from instruct_ray.evidence.evaluate import evaluate  # noqa: PLC0415  (takes seconds)

        evidence = evaluate(config, status, ray_session.init_ray)
    print("already evaluated" if evidence.already_done else f"evaluated on {evidence.values['num_test']} held-out rows")
    for name, arm in evidence.values["arms"].items():
        print(
            f"  {name:<10} accuracy {arm['accuracy']:.3f}  label found {arm['label_found']:.3f}  "
            f"{arm['prompt_tokens']:5.0f} prompt tokens  {arm['latency_p50_seconds']:.2f} s"
        )
    print(f"-> {RunFolder.from_config(config).evidence_file}")
