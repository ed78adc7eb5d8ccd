"""`instruct-ray evaluate`: the evaluate stage, from model to evidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.run.folder import RunFolder


def run_evaluate(config: Config) -> None:
    """Compare the tuned model of a run with prompting its base model, and print the verdict."""
    with StatusLine("evaluate") as status:
        status("loading libraries")
        from instruct_ray.evidence.evaluate import evaluate  # noqa: PLC0415  (takes seconds)
        from instruct_ray.evidence.results.files import ANSWERS_FILE, SUSPICIOUS_FILE  # noqa: PLC0415

        evidence = evaluate(config, status, ray_session.init_ray)
    values = evidence.values
    print("already evaluated" if evidence.already_done else f"evaluated on {values['num_test']} held-out rows")
    # Evidence of earlier versions has no verdict and no notes.
    if "verdict" in values:
        print(values["verdict"]["sentence"])
    for name, arm in values["arms"].items():
        print(f"  {name:<12} {describe_arm(arm)}")
    for note in values.get("notes", ()):
        print(f"  note: {note}")
    if suspicious := values.get("suspicious_rows"):
        print(f"  {len(suspicious)} rows look mislabelled: see {SUSPICIOUS_FILE}")
    evidence_file = RunFolder.from_config(config).evidence_file
    print(f"answers: {evidence_file.with_name(ANSWERS_FILE)}")
    # That of earlier versions can't be shown.
    if "format" in values:
        print(f"report: {_publish(config)}")
    print(f"-> {evidence_file}")


def _publish(config: Config) -> Path:
    from instruct_ray.evidence.publish import publish_evidence  # noqa: PLC0415  (takes seconds)

    return publish_evidence(config, lambda message: print(f"  note: {message}"))


def describe_arm(arm: Mapping[str, Any]) -> str:
    """The figures of an arm in one line."""
    parts = [f"accuracy {arm['accuracy']:.3f}"]
    if arm.get("accuracy_lower") is not None:
        parts[0] += f" [{arm['accuracy_lower']:.3f}, {arm['accuracy_upper']:.3f}]"
    if arm["prompt_tokens"] is not None:
        parts.append(f"{arm['prompt_tokens']:.0f} prompt tokens")
    latency = arm.get("latency")
    if latency is not None:
        parts.append(f"p50 {latency['p50']['value']:.2f} s")
    if arm.get("requests_per_second_at_8") is not None:
        parts.append(f"{arm['requests_per_second_at_8']:.1f} requests/s")
    counts = {"refused": arm.get("num_refused"), "failed": arm.get("num_failed")}
    parts += [f"{count} {word}" for word, count in counts.items() if count]
    return "  ".join(parts)
