"""`instruct-ray preview`, `doctor` and `drill`: inspect a run before it is trained."""

import sys
from functools import partial

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.errors import EXIT_FAILED

# Width of output that does not go to a terminal.
PLAIN_WIDTH = 160


def run_preview(config: Config, num_rows: int) -> None:
    """Print the first rows of the sources as the model will see them, and the packs they make."""
    from rich.console import Console  # noqa: PLC0415  (takes a while, like the imports below)

    with StatusLine("preview") as status:
        status("loading libraries")
        from instruct_ray.data.preview.preview import make_preview  # noqa: PLC0415
        from instruct_ray.data.preview.terminal import print_preview  # noqa: PLC0415

        status(f"reading {len(config.data.sources)} source(s)")
        preview = make_preview(config, num_rows)
    console = Console(highlight=False)
    if not console.is_terminal:
        # The width is that of the drawn trees; text is not wrapped.
        console = Console(highlight=False, soft_wrap=True, width=PLAIN_WIDTH)
    print_preview(preview, console)


def run_doctor(config: Config, *, is_timed: bool) -> None:
    """Check the run on the cluster and print the findings.

    Raises:
        InputError: a check failed.
    """
    from rich.console import Console  # noqa: PLC0415  (takes a while, like the imports below)

    with StatusLine("doctor") as status:
        status("loading libraries")
        from instruct_ray.doctor.doctor import print_findings, run_checks  # noqa: PLC0415
        from instruct_ray.training.capacity.checks import raise_if_failed  # noqa: PLC0415

        start_ray = partial(ray_session.init_ray_for_training, config.train)
        findings = run_checks(config, status, start_ray, is_timed=is_timed)
    console = Console(highlight=False)
    print_findings(findings, console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH))
    raise_if_failed(findings)


def run_drill(config: Config) -> None:
    """Kill a worker during a trial run and print whether rows or weights differ; exit with 1 if they do."""
    with StatusLine("drill") as status:
        status("loading libraries")
        from instruct_ray.doctor.fault_drill import run_fault_drill  # noqa: PLC0415  (takes seconds)

        report = run_fault_drill(config, status, partial(ray_session.init_ray_for_training, config.train))
    rows = "every step trained on its planned rows" if report.has_planned_rows else "ROWS DIFFER FROM THE PLAN"
    is_equal = report.max_weight_difference == 0
    weights = "bitwise equal" if is_equal else f"WEIGHTS DIFFER by up to {report.max_weight_difference:.1e}"
    print(f"{report.num_steps} steps, {report.num_rows} rows: {rows}; weights: {weights}")
    print(f"next step {report.recovery_seconds:.1f} s after the kill, {report.num_redone_steps} step(s) redone")
    if not report.passed:
        sys.exit(EXIT_FAILED)
