"""`instruct-ray benchmark`: what tuning cost in general skill, by standard benchmarks."""

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.run.folder import RunFolder


def run_benchmark(config: Config) -> None:
    """Run benchmarks on the base and the tuned model of a run, print them, and write the report of the run again."""
    with StatusLine("benchmark") as status:
        status("loading libraries")
        from instruct_ray.evidence.benchmarks.file import benchmarks_file  # noqa: PLC0415  (takes seconds)
        from instruct_ray.evidence.benchmarks.run import run_benchmarks  # noqa: PLC0415
        from instruct_ray.evidence.publish import publish_evidence  # noqa: PLC0415

        benchmarks = run_benchmarks(config, status, ray_session.init_ray)
    folder = RunFolder.from_config(config)
    if benchmarks.already_done:
        print("already benchmarked")
    for name, one in benchmarks.content.benchmarks.items():
        change = one.comparison
        interval = "" if change.lower is None else f" [{change.lower:+.3f}, {change.upper:+.3f}]"
        print(
            f"  {name:<18} base {one.base:.3f}  tuned {one.tuned:.3f}  difference {change.estimate:+.3f}{interval}  "
            f"{one.num_questions} questions"
        )
        if one.problem is not None:
            print(f"    note: {one.problem}")
    if folder.version_file.is_file():
        print("  note: the run was registered before; its version does not get these figures")
    if folder.evidence_file.is_file():
        print(f"report: {publish_evidence(config, lambda message: print(f'  note: {message}'))}")
    else:
        print("  note: the report shows them after `instruct-ray evaluate`")
    print(f"-> {benchmarks_file(folder)}")
