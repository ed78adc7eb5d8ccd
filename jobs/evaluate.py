"""model -> evidence.    python -m jobs.evaluate --config jobs/configs/incidents.yaml"""

from instruct_ray.config import Config
from instruct_ray.console import Status
from instruct_ray.run import RunFolder
from jobs import runner


def main(config: Config) -> None:
    """Compare the tuned model of a run with its base."""
    with Status("evaluate") as status:
        status("loading libraries")
        from instruct_ray.evidence.evaluate import evaluate  # noqa: PLC0415  (seconds: here it is not silent)

        evidence = evaluate(config, status, runner.connect)
    print("already evaluated" if evidence.already_done else f"evaluated on {evidence.values['num_test']} held-out rows")
    for name, arm in evidence.values["arms"].items():
        print(
            f"  {name:<10} accuracy {arm['accuracy']:.3f}  label found {arm['label_found']:.3f}  "
            f"{arm['prompt_tokens']:5.0f} prompt tokens  {arm['latency_p50_seconds']:.2f} s"
        )
    print(f"-> {RunFolder.of(config).evidence}")


if __name__ == "__main__":
    runner.run(main, __doc__)
